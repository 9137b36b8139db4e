"""Steps in full that are chained: the plain pipeline bit for bit, by ranks that have a part of the weights each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.errors import ConfigurationError, ShapeChangedError, TraceError
from asyncdiff.plan.split import Split
from tests.processes import run_ranks
from tests.tiny import PIPELINES, every, run
from tests.tiny.adapters import SMALL

STEPS = 1000  # more than any generation has
# What no split by hand can say: that two components call a module; blocks that some of the calls leave out.
NOT_BY_HAND = ("cascade_decoder", "sd35_skip_layer_guidance", "dit")
# What cannot be known without the weights: a cache that a call fills, who of the experts computes, words that are cut
# off in one of two calls.
REFUSED = {
    **dict.fromkeys(("flux2_klein_kv", "hidream"), TraceError),
    "framepack_true_cfg": ShapeChangedError,
}
# The labels of later steps are known after a longer warm-up only.
LABELLED_LATER = (
    *("lumina", "lumina2", "lumina2_truncated", "glm_image", "z_image", "z_image_truncated", "z_image_img2img"),
    *("modular_z_image", "modular_z_image_perturbed"),
)
# Their rounds differ by rounding: what was sent has another layout in memory than what was made here.
ROUNDED = ("ddpm", "consistency")


def split_of(async_diff: AsyncDiff) -> Split:
    """Who has which modules, as a division by hand takes it."""
    attachment = async_diff._attachment
    assert attachment is not None
    (runtime,) = attachment._runtimes.values()
    ownership = runtime._divisions._ownership
    assert ownership is not None
    return [
        [name for (name, _), owner in ownership.units.items() if owner == component]
        for component in range(ownership.components)
    ]


@pytest.mark.parametrize("name", every("sd3", "flux"))
def test_chained_steps_are_the_plain_pipeline_and_rounds_those_of_the_same_division(name: str) -> None:
    """In one process the ranks take turns, and read NaN wherever nothing was sent to them."""
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, components=2, warmup=STEPS, shard=True, executor="local") as async_diff:
        if name in REFUSED:
            with pytest.raises(REFUSED[name]):
                run(pipe, tiny)
            return
        assert torch.equal(run(pipe, tiny), plain)
    if name in NOT_BY_HAND or tiny.others:
        return  # a split by hand is for one denoiser
    stride = 1 if name in LABELLED_LATER else max(tiny.strides)
    settings: dict[str, Any] = dict(stride=stride, warmup=1, bridge=2, executor="local")
    with AsyncDiff(pipe, components=3, shard=True, **settings) as async_diff:
        chained = run(pipe, tiny)
        split = split_of(async_diff)
    with AsyncDiff(pipe, split=split, **settings):
        tolerance = 1e-5 if name in ROUNDED else 0.0
        torch.testing.assert_close(run(pipe, tiny), chained, rtol=tolerance, atol=tolerance)
    assert torch.equal(run(pipe, tiny), plain)


def test_two_denoisers_are_divided_each() -> None:
    tiny, pipe = PIPELINES["wan22"], PIPELINES["wan22"].build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, components=2, warmup=STEPS, shard=True, executor="local"):
        assert torch.equal(run(pipe, tiny), plain)


Outcome = dict[str, Any]


def _generate(rank: int, name: str, settings: dict[str, Any]) -> Outcome:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    denoiser = getattr(pipe, tiny.denoiser)
    with AsyncDiff(pipe, shard=True, **settings) as async_diff:
        pictures = [run(pipe, tiny), run(pipe, tiny)]
        here = sum(weight.nbytes for weight in denoiser.parameters() if type(weight) is torch.nn.Parameter)
        full = async_diff.report().denoisers[0].counts.full
        async_diff.gather()
    return {"pictures": pictures, "here": here, "full": full, "after": run(pipe, tiny)}


QUICK: list[tuple[int, str, dict[str, Any]]] = [
    (2, "sd3", {"warmup": STEPS}),
    (2, "flux", {"warmup": 2}),
]
WHOLE: list[tuple[int, str, dict[str, Any]]] = [
    (2, "sd15", {"warmup": STEPS}),
    (2, "wan22", {"components": 2, "bridge": 2}),
    (3, "svd", {"components": 2, "stride": 2, "warmup": 1, "bridge": 2}),
    (3, "sdxl_controlnet", {"components": 3, "warmup": 2}),
    (4, "sd15", {"components": 2, "guidance": 2, "warmup": 2}),
]


@pytest.mark.parametrize(
    ("world_size", "name", "settings"), [*QUICK, *(pytest.param(*each, marks=pytest.mark.whole) for each in WHOLE)]
)
def test_processes_with_a_part_of_the_weights_make_the_same_picture(
    world_size: int, name: str, settings: dict[str, Any]
) -> None:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain = run(pipe, tiny)
    components = settings.get("components", world_size)
    with AsyncDiff(pipe, shard=True, executor="local", **{"components": components, **settings}):
        expected = run(pipe, tiny)
    for outcome in run_ranks(world_size, _generate, name, settings):
        assert all(torch.equal(picture, expected) for picture in outcome["pictures"])
        assert torch.equal(outcome["after"], plain), "what was gathered is the whole"
        assert outcome["full"].total(), "and steps in full were counted as such"
    if settings.get("warmup") == STEPS:
        assert torch.equal(expected, plain)


def _inputs(pipe: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(2, 4, pipe.unet.config.cross_attention_dim, generator=generator),
    }


def _beside(rank: int) -> dict[str, Any]:
    """What people do with a denoiser beside generating."""
    pipe = SMALL.build()
    inputs = _inputs(pipe)
    with torch.no_grad():
        plain = pipe.unet(**inputs)[0]
    found: dict[str, Any] = {"plain": plain}
    with AsyncDiff(pipe, components=2, shard=True, timeout=20):
        with torch.no_grad():
            found["before any generation"] = pipe.unet(**inputs)[0]
        run(pipe, SMALL)
        with torch.no_grad():
            found["afterwards"] = pipe.unet(**inputs)[0]
        found["gradients"] = _refusal(lambda: pipe.unet(**inputs))
        found["saving"] = _refusal(pipe.unet.state_dict)
        found["moving"] = _refusal(lambda: pipe.unet.to(torch.float16))
        found["reading"] = _refusal(lambda: sum(weight.sum() for weight in pipe.unet.parameters()))
        found["stays"] = pipe.to("cpu") is pipe
        found["again"] = run(pipe, SMALL)
    found["disabled"] = _refusal(lambda: run(pipe, SMALL))
    found["attached again"] = _refusal(lambda: AsyncDiff(pipe, components=2, shard=True))
    return found


def _refusal(deed: Callable[[], Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        deed()
    return str(caught.value)


def test_calls_beside_a_generation_and_what_cannot_be_done_with_a_part() -> None:
    for found in run_ranks(2, _beside):
        assert torch.equal(found["before any generation"], found["plain"])
        assert torch.equal(found["afterwards"], found["plain"])
        assert found["gradients"].startswith("gradients are wanted of the 'unet'")
        for what in ("saving", "moving", "reading", "disabled"):
            assert found[what].startswith("this weight is on another rank"), what
        assert found["stays"] and isinstance(found["again"], Tensor)
        assert found["attached again"].startswith("the 'unet' has a part of its weights only")
