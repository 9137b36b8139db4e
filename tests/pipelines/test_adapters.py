"""What people put on a pipeline, before and after it was attached, and take off again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import PAGCFGJointAttnProcessor2_0, PAGJointAttnProcessor2_0
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.errors import OtherUnitsError
from tests.comparison import relative_error
from tests.processes import run_ranks
from tests.tiny import PIPELINES, TinyPipeline
from tests.tiny import adapters as put_on
from tests.tiny.base import image, noise, randomise, run, sampling, text
from tests.tiny.flux import flux_text
from tests.tiny.pictures import seeded
from tests.tiny.sdxl import pooled_text

STEPS = 5
WARMUP = 2

Deed = Callable[[DiffusionPipeline], object]


def nothing(pipe: DiffusionPipeline) -> None:
    """Leave a pipeline as it is."""


def does(function: Callable[..., object], *arguments: Any, **named: Any) -> Deed:
    """A function of a pipeline, with these further arguments."""
    return lambda pipe: function(pipe, *arguments, **named)


def calls(method: str, *arguments: Any, **named: Any) -> Deed:
    """A method of a pipeline, or of its denoiser (`denoiser.method`), with these arguments."""

    def call(pipe: DiffusionPipeline) -> None:
        owner, name = (pipe, method) if "." not in method else (put_on.denoiser_of(pipe), method.split(".")[1])
        getattr(owner, name)(*arguments, **named)

    return call


def in_order(*deeds: Deed) -> Deed:
    def all_of_them(pipe: DiffusionPipeline) -> None:
        for deed in deeds:
            deed(pipe)

    return all_of_them


@dataclass(frozen=True)
class Change:
    """What is done to a pipeline between two calls, or is given to the second call only.

    Attributes:
        prepare: done before the pipeline is attached.
        make: the change.
        undo: what takes it back.
        given: what all calls are given.
        more: what the calls after the change are given.
        leaves_rounding: that taking it back does, as when weights are added and subtracted.
    """

    name: str
    tiny: TinyPipeline
    prepare: Deed = nothing
    make: Deed = nothing
    undo: Deed = nothing
    given: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    leaves_rounding: bool = False

    def build(self) -> DiffusionPipeline:
        pipe = self.tiny.build()
        self.prepare(pipe)
        return pipe

    def before(self, pipe: DiffusionPipeline, steps: int = STEPS) -> Tensor:
        return run(pipe, self.tiny, **self.given | {"num_inference_steps": steps})

    def after(self, pipe: DiffusionPipeline, steps: int = STEPS) -> Tensor:
        return run(pipe, self.tiny, **self.given | self.more | {"num_inference_steps": steps})


UNET = put_on.SMALL
SD3 = PIPELINES["sd3"]
FLUX = PIPELINES["flux"]


def reading(family: str) -> TinyPipeline:
    """A pipeline that encodes its prompt itself."""
    inputs: dict[str, dict[str, Any]] = {
        "unet": {"prompt": "<x>", "negative_prompt": "", "guidance_scale": 5.0},
        "flux": {"prompt": "<x>", "height": 32, "width": 32},
    }
    denoiser = "unet" if family == "unet" else "transformer"
    return TinyPipeline(
        family, lambda: put_on.build_with_words(family), lambda pipe: sampling(**inputs[family]), denoiser
    )


def low_rank(tiny: TinyPipeline) -> Iterator[Change]:
    one, other = does(put_on.load_lora, "one", 10), does(put_on.load_lora, "other", 900, rank=3)
    use_one = calls("set_adapters", ["one"])
    both = in_order(one, other, use_one)
    scale = "cross_attention_kwargs" if tiny.denoiser == "unet" else "joint_attention_kwargs"

    def change(name: str, **parts: Any) -> Change:
        return Change(f"{tiny.name}-lora-{name}", tiny, **parts)

    yield change("loaded", make=one, undo=calls("unload_lora_weights"))
    yield change("unloaded", prepare=one, make=calls("unload_lora_weights"), undo=one)
    yield change("added", make=does(put_on.add_lora, "mine", 3), undo=calls("denoiser.delete_adapters", "mine"))
    yield change("swapped", prepare=both, make=calls("set_adapters", ["other"]), undo=use_one)
    yield change("joined", prepare=both, make=calls("set_adapters", ["one", "other"], [0.5, 0.7]), undo=use_one)
    yield change("weakened", prepare=one, make=calls("set_adapters", ["one"], [0.3]), undo=use_one)
    yield change("disabled", prepare=one, make=calls("disable_lora"), undo=calls("enable_lora"))
    yield change("second", prepare=one, make=other, undo=in_order(calls("delete_adapters", "other"), use_one))
    yield change("deleted", prepare=both, make=calls("delete_adapters", "one"), undo=in_order(one, use_one))
    yield change(
        "hot-swapped",
        prepare=one,
        make=does(put_on.load_lora, "one", 900, hotswap=True),
        undo=does(put_on.load_lora, "one", 10, hotswap=True),
    )
    # What is unfused keeps the scale at which it was fused, until it is told another.
    fuse, unfuse = calls("fuse_lora", lora_scale=0.5), in_order(calls("unfuse_lora"), use_one)
    yield change("fused", prepare=one, make=fuse, undo=unfuse, leaves_rounding=True)
    yield change("unfused", prepare=in_order(one, fuse), make=unfuse, undo=fuse, leaves_rounding=True)
    yield change(
        "fused-for-good",
        make=in_order(one, fuse, calls("unload_lora_weights")),
        undo=lambda pipe: randomise(put_on.denoiser_of(pipe)),
    )
    reader = tiny if tiny is not UNET else reading("unet")  # this pipeline scales its text encoder too
    yield Change(f"{tiny.name}-lora-scaled-by-the-call", reader, prepare=one, more={scale: {"scale": 0.4}})


def picture_prompts() -> Iterator[Change]:
    def families() -> Iterator[tuple[TinyPipeline, Callable[..., Deed], dict[str, Any]]]:
        picture, nobody = noise(1, 1, put_on.PICTURE_WIDTH, seed=8), torch.zeros(1, 1, put_on.PICTURE_WIDTH)
        embeddings = torch.cat([nobody, picture])
        yield UNET, put_on.load_picture_prompt, {"ip_adapter_image_embeds": [embeddings]}
        yield SD3, put_on.load_sd3_picture_prompt, {"ip_adapter_image_embeds": embeddings}
        both = {"ip_adapter_image_embeds": [picture], "negative_ip_adapter_image_embeds": [nobody]}
        yield FLUX, put_on.load_picture_prompt, both
        yield PIPELINES["flux_true_cfg"], put_on.load_picture_prompt, both

    for tiny, loader, picture in families():
        load, unload = does(loader, 5), calls("unload_ip_adapter")
        on, weak, off = (calls("set_ip_adapter_scale", scale) for scale in (1.0, 0.4, 0.0))

        def change(name: str, tiny: TinyPipeline = tiny, **parts: Any) -> Change:
            return Change(f"{tiny.name}-picture-{name}", tiny, **parts)

        yield change("loaded", make=load, undo=unload, more=picture)
        yield change("unloaded", prepare=load, make=unload, undo=load, given=picture, more=dict.fromkeys(picture))
        yield change("weakened", prepare=in_order(load, on), make=weak, undo=on, given=picture)
        yield change("switched-on", prepare=in_order(load, off), make=on, undo=off, given=picture)
        yield change(
            "beside-lora",
            make=in_order(does(put_on.add_lora, "mine", 3), load),
            undo=in_order(unload, calls("denoiser.delete_adapters", "mine")),
            more=picture,
        )
    pictures = [noise(2, 1, put_on.PICTURE_WIDTH, seed=8), noise(2, 1, put_on.PICTURE_WIDTH, seed=9)]
    yield Change(
        "unet-picture-second",
        UNET,
        prepare=does(put_on.load_picture_prompt, 5),
        make=does(put_on.load_picture_prompt, 5, 50),
        undo=does(put_on.load_picture_prompt, 5),
        given={"ip_adapter_image_embeds": pictures[:1]},
        more={"ip_adapter_image_embeds": pictures},
    )
    yield Change(
        "unet-picture-by-block",
        UNET,
        prepare=does(put_on.load_picture_prompt, 5),
        make=calls("set_ip_adapter_scale", {"up": {"block_1": [0.0, 1.0]}}),
        undo=calls("set_ip_adapter_scale", 1.0),
        given={"ip_adapter_image_embeds": pictures[:1]},
    )


def words() -> Iterator[Change]:
    for family in ("unet", "flux"):
        yield Change(
            f"{family}-textual-inversion",
            reading(family),
            make=calls("load_textual_inversion", 3 * noise(16, seed=6), token="<x>"),
            undo=calls("unload_textual_inversion"),
        )


def controlnets() -> Iterator[Change]:
    pictures = [image(), image(seed=1)]
    inputs = {
        "unet": lambda pipe: text(image=pictures, controlnet_conditioning_scale=[1.0, 0.7]),
        "sd3": lambda pipe: seeded(pooled_text(control_image=pictures, controlnet_conditioning_scale=[1.0, 0.7])),
        "flux": lambda pipe: seeded(flux_text(control_image=pictures, controlnet_conditioning_scale=[1.0, 0.7])),
    }
    for family, given in inputs.items():
        tiny = TinyPipeline(
            family,
            lambda family=family: put_on.build_two_controlnets(family),
            given,
            "unet" if family == "unet" else "transformer",
        )
        yield Change(f"{family}-controlnet-ends", tiny, more={"control_guidance_end": [0.5, 1.0]})
        yield Change(f"{family}-controlnets-end", tiny, more={"control_guidance_end": [0.5, 0.7]})
        yield Change(f"{family}-controlnet-begins", tiny, more={"control_guidance_start": [0.4, 0.0]})
        yield Change(f"{family}-controlnet-weaker", tiny, more={"controlnet_conditioning_scale": [0.3, 0.7]})


def guidance() -> Iterator[Change]:
    yield Change(
        "unet-freeu",
        UNET,
        make=calls("enable_freeu", s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        undo=calls("disable_freeu"),
    )
    yield Change(
        "unet-freeu-stronger",
        UNET,
        prepare=calls("enable_freeu", s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        make=calls("enable_freeu", s1=0.8, s2=0.1, b1=1.5, b2=1.6),
        undo=calls("enable_freeu", s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    )
    pag = TinyPipeline("unet", put_on.build_pag, lambda pipe: text(pag_scale=3.0), "unet")
    yield Change("unet-pag-off", pag, more={"pag_scale": 0.0})
    yield Change("unet-pag-without-guidance", pag, more={"guidance_scale": 0.0})
    yield Change("unet-pag-adaptive", pag, more={"pag_adaptive_scale": 0.01})
    yield Change(
        "sd3-pag-elsewhere",
        pag,
        make=calls("set_pag_applied_layers", ["up_blocks"]),
        undo=calls("set_pag_applied_layers", ["mid"]),
    )
    joint = (PAGCFGJointAttnProcessor2_0(), PAGJointAttnProcessor2_0())
    yield Change("sd3-pag-off", PIPELINES["sd3_pag"], more={"pag_scale": 0.0})
    yield Change(
        "sd3-pag-elsewhere",
        PIPELINES["sd3_pag"],
        make=calls("set_pag_applied_layers", ["blocks.3"], joint),
        undo=calls("set_pag_applied_layers", ["blocks.1"], joint),
    )
    skips = {"skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.8}
    yield Change("sd3-skip-layer", PIPELINES["sd35"], more={"skip_guidance_layers": [2, 3], **skips})
    yield Change(
        "sd3-skip-other-layers",
        PIPELINES["sd35"],
        given={"skip_guidance_layers": [2, 3], **skips},
        more={"skip_guidance_layers": [1], **skips},
    )
    yield Change("unet-images-per-prompt", UNET, more={"num_images_per_prompt": 3})
    yield Change("flux-images-per-prompt", FLUX, more={"num_images_per_prompt": 2})


CHANGES = {
    change.name: change
    for changes in (
        low_rank(UNET),
        low_rank(SD3),
        low_rank(FLUX),
        picture_prompts(),
        words(),
        controlnets(),
        guidance(),
    )
    for change in changes
}


QUICK = (
    "sd3-lora-unfused",
    "flux-lora-unloaded",
    "flux_true_cfg-picture-loaded",
    "unet-textual-inversion",
    "sd3-controlnets-end",
    "unet-freeu-stronger",
    "sd3-pag-elsewhere",
    "sd3-skip-layer",
    "flux-images-per-prompt",
)


def attach(pipe: DiffusionPipeline, warmup: int = WARMUP, executor: Any = "local") -> AsyncDiff:
    return AsyncDiff(pipe, components=2, warmup=warmup, executor=executor, timeout=60, method="paper")


def check_rounds(async_diff: AsyncDiff) -> None:
    (report,) = async_diff.report().denoisers
    assert report.counts.rounds > 0
    assert report.counts.units_skipped > 0


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.whole) for name in CHANGES]
)
def test_a_change_between_two_calls(name: str) -> None:
    """It works as if made before attaching; taken back, as if never made; without rounds, as without asyncdiff."""
    change = CHANGES[name]
    other = change.build()
    change.make(other)
    plain, plain_short = change.after(other), change.after(other, WARMUP + 1)
    with attach(other) as async_diff:
        expected = change.after(other)
        check_rounds(async_diff)
    pipe = change.build()
    untouched = change.before(pipe)
    with attach(pipe) as async_diff:
        before = change.before(pipe)
        check_rounds(async_diff)
        change.make(pipe)
        found = change.after(pipe)
        check_rounds(async_diff)
        change.undo(pipe)
        undone = change.before(pipe)
        check_rounds(async_diff)
    assert torch.isfinite(found).all()
    assert found.shape != before.shape or relative_error(found, before) > 1e-3, "the change has no effect"
    assert relative_error(found, expected) <= 1e-5
    assert relative_error(undone, before) <= 1e-5
    assert relative_error(found, plain) < 1
    if change.leaves_rounding:
        assert relative_error(change.before(pipe), untouched) <= 1e-5
    else:
        assert torch.equal(change.before(pipe), untouched)
    with attach(pipe, warmup=99):
        change.before(pipe, WARMUP + 1)
        change.make(pipe)
        short = change.after(pipe, WARMUP + 1)
    if change.leaves_rounding:
        assert relative_error(short, plain_short) <= 1e-5
    else:
        assert torch.equal(short, plain_short)


def test_a_scale_that_was_nothing_with_a_split_that_owns_the_projection() -> None:
    """Nobody reads the picture's tokens while it is 0; later the division made then must not be used."""
    split = [["down_blocks.0", "down_blocks.1", "mid_block"], ["encoder_hid_proj", "up_blocks.0", "up_blocks.1"]]
    change = CHANGES["unet-picture-weakened"]

    def attached(pipe: DiffusionPipeline) -> AsyncDiff:
        return AsyncDiff(pipe, components=2, split=split, warmup=WARMUP, executor="local", method="paper")

    fresh, pipe = change.build(), change.build()
    for one in (fresh, pipe):
        one.set_ip_adapter_scale(0.6)
    with attached(fresh) as async_diff:
        expected = change.before(fresh)
        check_rounds(async_diff)
    with attached(pipe) as async_diff:
        pipe.set_ip_adapter_scale(0.0)
        without = change.before(pipe)
        check_rounds(async_diff)
        pipe.set_ip_adapter_scale(0.6)
        found = change.before(pipe)
        check_rounds(async_diff)
        pipe.set_ip_adapter_scale(0.0)
        assert torch.equal(change.before(pipe), without)
    assert torch.isfinite(found).all()
    assert torch.equal(found, expected)
    assert relative_error(found, without) > 1e-3


def test_an_adapter_that_a_callback_takes_off_is_named() -> None:
    """In the middle of a generation; no cache is blamed for it, and the next generation is an ordinary one."""
    tiny = PIPELINES["sd15"]
    pipe = tiny.build()
    put_on.load_lora(pipe, "a", 1)

    def take_off(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 3:
            pipe.unload_lora_weights()
        return values

    with attach(pipe) as async_diff:
        with pytest.raises(OtherUnitsError, match="have changed within a generation"):
            run(pipe, tiny, num_inference_steps=STEPS, callback_on_step_end=take_off)
        run(pipe, tiny, num_inference_steps=STEPS)
        check_rounds(async_diff)


def _changed_and_back(rank: int, names: list[str], executor: str) -> list[Tensor]:
    """Before, after and once more before each of some changes."""
    results = []
    for name in names:
        change = CHANGES[name]
        pipe = change.build()
        with attach(pipe, executor=executor) as async_diff:
            results.append(change.before(pipe))
            change.make(pipe)
            results.append(change.after(pipe))
            check_rounds(async_diff)
            change.undo(pipe)
            results.append(change.before(pipe))
    return results


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["unet-lora-loaded", "unet-controlnet-ends"], marks=pytest.mark.whole),
        ["sd3-lora-swapped", "flux_true_cfg-picture-loaded"],
        *(pytest.param([name], marks=pytest.mark.whole) for name in CHANGES),
    ],
    ids=lambda names: names[0] if len(names) == 1 else f"{len(names)}-from-{names[0]}",
)
def test_changes_between_two_processes(names: list[str]) -> None:
    expected = _changed_and_back(0, names, "local")
    first, second = run_ranks(2, _changed_and_back, names, "distributed")
    for found, other, together in zip(first, second, expected, strict=True):
        assert torch.equal(found, other)
        assert relative_error(found, together) <= 1e-5
