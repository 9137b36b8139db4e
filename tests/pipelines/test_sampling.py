"""Ways to sample: schedulers, guidance, batches, callbacks, interruptions, precisions, each against the recurrence."""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import SD3CFGCutoffCallback, SDCFGCutoffCallback, SDXLCFGCutoffCallback
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.report import Counts
from tests.comparison import relative_error
from tests.processes import run_ranks
from tests.recurrence import plain_and_expected
from tests.tiny import PIPELINES, TinyPipeline, run
from tests.tiny.adapters import PICTURE_WIDTH, SMALL, denoiser_of, load_lora, load_picture_prompt
from tests.tiny.base import STABLE_DIFFUSION_NOISE, noise

STEPS = 7
STRIDES = (pytest.param(1, marks=pytest.mark.whole), 2)  # what holds for two predictions a round, holds for one


@dataclass(frozen=True)
class Divided:
    """A tiny pipeline and a division of its denoiser in two that is easy to write down."""

    tiny: TinyPipeline
    front: tuple[str, ...]
    back: tuple[str, ...]

    def build(self) -> DiffusionPipeline:
        return self.tiny.build()

    def run(self, pipe: DiffusionPipeline, **arguments: Any) -> Tensor:
        return run(pipe, self.tiny, **{"num_inference_steps": STEPS} | arguments)

    def attach(self, pipe: DiffusionPipeline, stride: int = 1, warmup: int = 2, executor: Any = "local") -> AsyncDiff:
        return AsyncDiff(
            pipe, 2, stride, warmup, split=[self.front, self.back], executor=executor, timeout=60, method="paper"
        )


def _divided_unet(tiny: TinyPipeline, levels: int) -> Divided:
    downs = tuple(f"down_blocks.{level}" for level in range(levels))
    return Divided(tiny, ("conv_in", *downs, "mid_block"), ("up_blocks", "conv_norm_out", "conv_out"))


def _blocks(first: int, end: int) -> tuple[str, ...]:
    return tuple(f"transformer_blocks.{number}" for number in range(first, end))


FLUX_HALVES = (_blocks(0, 3), ("single_transformer_blocks", "norm_out", "proj_out"))
SD3_HALVES = (_blocks(0, 2), (*_blocks(2, 4), "norm_out", "proj_out"))
FAMILIES = {
    "unet": _divided_unet(SMALL, 2),
    "sdxl": _divided_unet(PIPELINES["sdxl"], 3),
    "sd3": Divided(PIPELINES["sd3"], *SD3_HALVES),
    "sd35": Divided(PIPELINES["sd35"], *SD3_HALVES),
    "flux": Divided(PIPELINES["flux"], *FLUX_HALVES),
    "flux_true_cfg": Divided(PIPELINES["flux_true_cfg"], *FLUX_HALVES),
}


def check(
    family: str,
    stride: int,
    warmup: int,
    change: Callable[[DiffusionPipeline], object] = lambda pipe: None,
    tolerance: float = 1e-5,
    in_full: bool = False,
    **arguments: Any,
) -> tuple[Tensor, Counts]:
    """Run a call with rounds, which are the recurrence; if `in_full`, without too, which is the plain pipeline.

    Returns the plain result, and what was counted in the call with rounds.
    """
    divided = FAMILIES[family]
    pipe = divided.build()
    change(pipe)
    denoiser = divided.tiny.denoiser

    def call() -> Tensor:
        torch.manual_seed(0)  # not every pipeline passes its generator on to the scheduler
        return divided.run(pipe, **arguments)

    plain, expected, lengths = plain_and_expected(pipe, denoiser, divided.front, stride, warmup, call)
    with divided.attach(pipe, stride, warmup) as async_diff:
        found = call()
        counts = async_diff.report().denoisers[0].counts
    rounds = [max(0, math.ceil((length - _first_round(stride, warmup)) / stride)) for length in lengths]
    assert counts.rounds == sum(rounds) > 0
    assert counts.full.total() == sum(min(warmup, length) for length in lengths)
    assert counts.steps == sum(lengths)
    assert relative_error(found, expected) <= tolerance
    assert relative_error(found, plain) > 1e-4, "rounds change nothing"
    if in_full:
        with divided.attach(pipe, stride, warmup=99):
            assert torch.equal(call(), plain)
    return plain, counts


@functools.cache
def ordinary(family: str, steps: int = STEPS) -> Tensor:
    """The plain result of a call with nothing special about it, which the schedulers' tests check in rounds."""
    torch.manual_seed(0)
    return FAMILIES[family].run(FAMILIES[family].build(), num_inference_steps=steps)


def _first_round(stride: int, warmup: int) -> int:
    return next(step for step in range(warmup, warmup + stride) if (step - 1) % stride == 0)


ignore_short = pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")

# One of every kind: plain, with noise of its own, with a memory, of second order, with a step that is repeated.
SCHEDULERS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "unet": {
        "ddim": ("DDIMScheduler", {}),
        "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
        "dpm++2m": ("DPMSolverMultistepScheduler", {}),
        "heun": ("HeunDiscreteScheduler", {}),
        "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    },
    "sd3": {
        "flow-euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        "flow-heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    },
}
MORE_SCHEDULERS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "unet": {
        "ddpm": ("DDPMScheduler", {}),
        "euler": ("EulerDiscreteScheduler", {}),
        "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        "unipc": ("UniPCMultistepScheduler", {}),
        "lcm": ("LCMScheduler", {}),
        "pndm-runge-kutta": ("PNDMScheduler", {}),
        "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "dpm++singlestep": ("DPMSolverSinglestepScheduler", {}),
        "deis": ("DEISMultistepScheduler", {}),
        "kdpm2": ("KDPM2DiscreteScheduler", {}),
        "kdpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
        "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        "ddim-trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
        "sa": ("SASolverScheduler", {}),
        "tcd": ("TCDScheduler", {}),
    },
    "sd3": {
        "flow-lcm": ("FlowMatchLCMScheduler", {"shift": 3.0}),
        "flow-stochastic": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
        "flow-dpm++": (
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        ),
        "flow-unipc": (
            "UniPCMultistepScheduler",
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        ),
    },
}


def _scheduler(family: str, name: str) -> Any:
    """As a user swaps it in: of the configuration of the one that the pipeline had."""
    kind, config = (SCHEDULERS[family] | MORE_SCHEDULERS[family])[name]
    common = STABLE_DIFFUSION_NOISE if family == "unet" else {}
    return getattr(diffusers, kind).from_config(common | config)


def _put(name: str, family: str) -> Callable[[DiffusionPipeline], None]:
    def put(pipe: DiffusionPipeline) -> None:
        pipe.scheduler = _scheduler(family, name)

    return put


@ignore_short
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family, names in SCHEDULERS.items() for name in names]
    + [
        pytest.param(family, name, marks=pytest.mark.whole)
        for family, names in MORE_SCHEDULERS.items()
        for name in names
    ],
)
def test_schedulers(family: str, name: str, stride: int) -> None:
    """Noise predictions are counted: a scheduler of second order needs more of them than it makes steps."""
    _, counts = check(family, stride, 1 + stride, _put(name, family), in_full=True)
    predictions = {"heun": 2 * STEPS - 1, "pndm": STEPS + 1, "flow-heun": 2 * STEPS - 1}.get(name)
    if predictions is not None:
        assert counts.steps == predictions


MORE_THAT_ARE_NOT_FULL = ((3, 1, 6), (3, 4, 9), (4, 3, 8), (4, 5, 7))


@ignore_short
@pytest.mark.parametrize("family", [pytest.param("unet", marks=pytest.mark.whole), "sd3"])
@pytest.mark.parametrize(
    ("stride", "warmup", "steps"),
    [(3, 2, 9), (4, 1, 4), *(pytest.param(*each, marks=pytest.mark.whole) for each in MORE_THAT_ARE_NOT_FULL)],
)
def test_rounds_that_are_not_full(family: str, stride: int, warmup: int, steps: int) -> None:
    """The last round ends after the generation, or the first begins after the warm-up."""
    check(
        family,
        stride,
        warmup,
        lambda pipe: _put("ddim", family)(pipe) if family == "unet" else None,
        num_inference_steps=steps,
    )


def cut_off(family: str, step: int = 4) -> Any:
    kinds = {"unet": SDCFGCutoffCallback, "sdxl": SDXLCFGCutoffCallback, "sd3": SD3CFGCutoffCallback}
    return kinds[family](cutoff_step_ratio=None, cutoff_step_index=step)


@ignore_short
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("family", [*(pytest.param(name, marks=pytest.mark.whole) for name in ("unet", "sdxl")), "sd3"])
def test_guidance_that_ends_part_way(family: str, stride: int) -> None:
    """The batch is halved then: what goes on has a warm-up of its own."""
    cut: dict[str, Any] = {"callback_on_step_end": cut_off(family), "num_inference_steps": 11}
    ended, counts = check(family, stride, 1 + stride, in_full=True, **cut)
    assert counts.full == {"warm-up": 1 + stride, "inputs of another shape": 1 + stride}
    assert relative_error(ended, ordinary(family, 11)) > 1e-3


@ignore_short
@pytest.mark.parametrize(
    ("family", "scale"),
    [
        ("unet", 0.0),
        ("sd3", 1.0),
        pytest.param("unet", 1.0, marks=pytest.mark.whole),
        pytest.param("sd3", 0.0, marks=pytest.mark.whole),
    ],
)
def test_no_guidance(family: str, scale: float) -> None:
    unguided, _ = check(family, 2, 3, guidance_scale=scale)
    assert relative_error(unguided, ordinary(family)) > 1e-3


@ignore_short
@pytest.mark.parametrize("stride", STRIDES)
def test_guidance_in_two_calls(stride: int) -> None:
    guided, counts = check("flux_true_cfg", stride, 1 + stride)
    assert counts.steps == 2 * STEPS
    distilled, counts = check("flux_true_cfg", stride, 1 + stride, true_cfg_scale=1.0)
    assert counts.steps == STEPS
    assert relative_error(guided, distilled) > 1e-3


@ignore_short
@pytest.mark.parametrize("stride", STRIDES)
def test_a_branch_for_some_of_the_steps(stride: int) -> None:
    """Skip-layer guidance is one call more in each of some steps; it begins late and ends early."""
    skips = {"skip_guidance_layers": [1, 3], "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.8}
    skipping, counts = check("sd35", stride, 1 + stride, num_inference_steps=11, **skips)
    assert counts.full.keys() == {"warm-up", "new stream"}
    assert relative_error(skipping, ordinary("sd35", 11)) > 1e-3


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.mark.parametrize("family", ["unet", "sd3", pytest.param("flux", marks=pytest.mark.whole)])
def test_a_batch_is_its_prompts_one_by_one(family: str) -> None:
    """Every prompt has a generator of its own."""
    divided = FAMILIES[family]
    pipe = divided.build()
    if family == "unet":
        _put("euler-ancestral", family)(pipe)
    inputs = divided.tiny.inputs(pipe)
    one = {key: value for key, value in inputs.items() if key.endswith("embeds")}
    other = {key: value.flip(-1) for key, value in one.items()}
    both = {key: torch.cat([one[key], other[key]]) for key in one}
    with divided.attach(pipe, 2, 3) as async_diff:
        together = divided.run(pipe, **both, generator=seeds(0, 1))
        assert async_diff.report().denoisers[0].counts.rounds > 0
        alone = [divided.run(pipe, **one, generator=seeds(0)), divided.run(pipe, **other, generator=seeds(1))]
    assert relative_error(together, torch.cat(alone)) < 1e-4
    assert relative_error(together[1], together[0]) > 1e-2


@ignore_short
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("family", ["sd3", pytest.param("flux", marks=pytest.mark.whole)])
def test_the_scale_of_an_adapter_in_a_call(family: str, stride: int) -> None:
    """Where rounds are given another timestep, all else is given as it was."""
    strong, _ = check(family, stride, 3, lambda pipe: load_lora(pipe, "one", 10))
    weak, _ = check(family, stride, 3, lambda pipe: load_lora(pipe, "one", 10), joint_attention_kwargs={"scale": 0.4})
    assert relative_error(weak, strong) > 1e-3


@ignore_short
@pytest.mark.parametrize(
    "family", ["unet", *(pytest.param(name, marks=pytest.mark.whole) for name in ("sdxl", "flux"))]
)
def test_other_sizes_and_steps_from_call_to_call(family: str) -> None:
    divided = FAMILIES[family]
    calls: list[dict[str, Any]] = [
        {},
        {"height": 48, "width": 32},
        {"num_inference_steps": 5},
        {"num_inference_steps": 2},
        {},
    ]
    pipe, alone = divided.build(), []
    for arguments in calls:
        with divided.attach(pipe, 2, 3):
            alone.append(divided.run(pipe, **arguments))
    with divided.attach(pipe, 2, 3):
        for arguments, expected in zip(calls, alone, strict=True):
            assert relative_error(divided.run(pipe, **arguments), expected) <= 1e-5


def edit(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Latents, and not the same tensor."""
    return values | {"latents": values["latents"] * (0.9 if index % 2 else 1.05) + 0.1}


@ignore_short
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("family", ["sd3", *(pytest.param(name, marks=pytest.mark.whole) for name in ("unet", "flux"))])
def test_a_callback_that_edits_latents(family: str, stride: int) -> None:
    edited, _ = check(family, stride, 1 + stride, callback_on_step_end=edit)
    assert relative_error(edited, ordinary(family)) > 1e-3


def weaken_in_turn(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    pipe.set_adapters(["one"], [0.3 if index % 2 else 1.0])
    return values


@ignore_short
@pytest.mark.parametrize("stride", STRIDES)
def test_callbacks_that_change_adapters(stride: int) -> None:
    """An adapter that is weaker in every other step; a picture that is shown in the first steps only."""
    # What a callback has left in the pipeline is there in the next call: so the first steps are alike in all calls, of
    # an odd number of steps.
    check(
        "sd3",
        stride,
        1 + stride,
        lambda pipe: load_lora(pipe, "one", 10),
        callback_on_step_end=weaken_in_turn,
    )

    def show(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(0.0 if 3 < index < STEPS - 1 else 1.0)
        return values

    picture = torch.cat([torch.zeros(1, 1, PICTURE_WIDTH), noise(1, 1, PICTURE_WIDTH, seed=8)])
    check(
        "unet",
        stride,
        1 + stride,
        lambda pipe: load_picture_prompt(pipe, 5),
        ip_adapter_image_embeds=[picture],
        callback_on_step_end=show,
    )


def _cast_layerwise(pipe: DiffusionPipeline) -> None:
    denoiser_of(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@ignore_short
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("unet", lambda pipe: pipe.fuse_qkv_projections()),
        ("unet", lambda pipe: pipe.enable_attention_slicing("max")),
        pytest.param("unet", _cast_layerwise, marks=pytest.mark.whole),
        ("sd3", _cast_layerwise),
    ],
    ids=["fused-projections", "sliced-attention", "cast-layers-unet", "cast-layers-sd3"],
)
def test_settings_of_the_denoiser(family: str, change: Callable[[DiffusionPipeline], object]) -> None:
    check(family, 2, 3, change)


@ignore_short
@torch.inference_mode()
def test_in_inference_mode() -> None:
    check("flux", 2, 3)


def stop_at(step: int) -> Callable[..., dict[str, Any]]:
    def stop(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = pipe._interrupt or index == step
        return values

    return stop


def fail_at(step: int) -> Callable[..., dict[str, Any]]:
    def fail(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            raise KeyError("stop")
        return values

    return fail


@pytest.mark.parametrize(
    ("family", "step"),
    [
        *(("flux_true_cfg", step) for step in (1, 3, 4)),
        ("unet", 3),
        *(pytest.param("unet", step, marks=pytest.mark.whole) for step in (1, 4)),
    ],
)
def test_an_interrupted_call_and_the_next(family: str, step: int) -> None:
    """The latents are those at that step, in the middle of a round too; the next call is a whole one."""
    divided = FAMILIES[family]
    pipe = divided.build()
    seen: list[Tensor] = []

    def remember(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].clone())
        return values

    with divided.attach(pipe, 2, 3):
        whole = divided.run(pipe, callback_on_step_end=remember)
        assert torch.equal(divided.run(pipe, callback_on_step_end=stop_at(step)), seen[step])
        assert torch.equal(divided.run(pipe), whole)


def _after_mishaps(rank: int, family: str, stride: int, executor: str) -> list[Tensor]:
    """Whole calls, the first undisturbed, the others after an interrupted one or after an exception."""
    divided = FAMILIES[family]
    pipe = divided.build()
    results = []
    with divided.attach(pipe, stride, 1 + stride, executor=executor):
        results.append(divided.run(pipe))
        for step in (0, 3, 4):
            results.append(divided.run(pipe, callback_on_step_end=stop_at(step)))
            results.append(divided.run(pipe))
            with pytest.raises(KeyError, match="stop"):
                divided.run(pipe, callback_on_step_end=fail_at(step))
            results.append(divided.run(pipe))
    return results


@pytest.mark.parametrize(
    ("family", "stride"),
    [
        pytest.param("unet", 1, marks=pytest.mark.whole),
        ("flux_true_cfg", 1),
        pytest.param("unet", 2, marks=pytest.mark.whole),
        pytest.param("sd3", 2, marks=pytest.mark.whole),
    ],
)
def test_mishaps_on_all_ranks(family: str, stride: int) -> None:
    expected = _after_mishaps(0, family, stride, "local")
    for number in (2, 3, 5, 6, 8, 9):
        assert torch.equal(expected[number], expected[0])
    everyone = run_ranks(1 + stride, _after_mishaps, family, stride, "distributed")
    for own in everyone:
        for found, first, together in zip(own, everyone[0], expected, strict=True):
            assert torch.equal(found, first)
            assert relative_error(found, together) <= 1e-5


def _without_generator(rank: int, family: str, name: str | None, stride: int) -> list[Tensor]:
    """Latents after every step, on ranks whose random states differ at first."""
    divided = FAMILIES[family]
    pipe = divided.build()
    if name is not None:
        _put(name, family)(pipe)
    torch.manual_seed(100 + rank)
    latents: list[Tensor] = []

    def remember(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].clone())
        return values

    with divided.attach(pipe, stride, 1 + stride, executor="distributed") as async_diff:
        for _ in range(2):
            divided.run(pipe, generator=None, callback_on_step_end=remember)
            assert async_diff.report().denoisers[0].counts.rounds > 0
    return latents


@pytest.mark.parametrize(
    ("family", "name", "stride"),
    [
        ("unet", "euler-ancestral", 1),
        ("sd3", "flow-stochastic", 1),
        pytest.param("unet", "dpm++sde", 2, marks=pytest.mark.whole),
        pytest.param("unet", "ddpm", 1, marks=pytest.mark.whole),
    ],
)
def test_noise_without_a_generator_is_the_same_on_all_ranks(family: str, name: str, stride: int) -> None:
    first, *others = run_ranks(1 + stride, _without_generator, family, name, stride)
    assert len(first) == 2 * STEPS
    assert not torch.equal(first[0], first[STEPS]), "the second call drew the same numbers again"
    for other in others:
        assert all(torch.equal(own, same) for own, same in zip(first, other, strict=True))


@ignore_short
@pytest.mark.parametrize("family", [pytest.param("unet", marks=pytest.mark.whole), "flux"])
def test_vae_slicing_and_tiling(family: str) -> None:
    divided = FAMILIES[family]
    pipe = divided.build()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8
    pictures = {"output_type": "pt", "num_images_per_prompt": 2}
    decoded: list[int] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda decoder, args: decoded.append(len(args[0])))
    with divided.attach(pipe, warmup=2) as async_diff:
        whole = divided.run(pipe, **pictures)
        assert decoded == [2]
        pipe.vae.enable_slicing()
        sliced = divided.run(pipe, **pictures)
        assert decoded[1:] == [1, 1]
        pipe.vae.enable_tiling()
        tiled = divided.run(pipe, **pictures)
        assert len(decoded) > 5
        assert async_diff.report().denoisers[0].counts.rounds > 0
    with divided.attach(pipe, warmup=2):
        assert torch.equal(divided.run(pipe, **pictures), tiled)
    assert relative_error(sliced, whole) < 1e-5
    assert relative_error(tiled, whole) > 1e-4
    plain = divided.run(pipe, **pictures)
    with divided.attach(pipe, warmup=99):
        assert torch.equal(divided.run(pipe, **pictures), plain)


def channels_last(pipe: DiffusionPipeline) -> None:
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(memory_format=torch.channels_last)


@ignore_short
@pytest.mark.parametrize("family", ["unet", *(pytest.param(name, marks=pytest.mark.whole) for name in ("sdxl", "sd3"))])
def test_channels_last(family: str) -> None:
    check(family, 2, 3, channels_last)


@ignore_short
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("unet", torch.bfloat16),
        ("sd3", torch.float16),
        ("flux", torch.bfloat16),
        pytest.param("unet", torch.float16, marks=pytest.mark.whole),
        pytest.param("sd3", torch.bfloat16, marks=pytest.mark.whole),
        pytest.param("flux", torch.float16, marks=pytest.mark.whole),
    ],
    ids=str,
)
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    divided = FAMILIES[family]
    single = divided.run(divided.build())
    inputs = {key: value.to(dtype) for key, value in divided.tiny.inputs(None).items() if isinstance(value, Tensor)}
    half, _ = check(family, 2, 3, lambda pipe: pipe.to(dtype=dtype), 8 * torch.finfo(dtype).eps, **inputs)
    assert half.dtype == dtype
    if draws_as_in_single_precision(dtype):
        assert 0 < relative_error(half, single) < 0.5


def draws_as_in_single_precision(dtype: torch.dtype) -> bool:
    """Whether a seed gives the same noise in a number format, rounded; in older versions of torch it gives another."""
    ours, single = (torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=of) for of in (dtype, None))
    return torch.allclose(ours.float(), single, atol=0.02)


@ignore_short
@pytest.mark.parametrize("family", ["sd3", *(pytest.param(name, marks=pytest.mark.whole) for name in ("unet", "flux"))])
def test_another_precision_between_two_calls(family: str) -> None:
    divided = FAMILIES[family]
    pipe = divided.build()
    half = {key: value.bfloat16() for key, value in divided.tiny.inputs(None).items() if isinstance(value, Tensor)}
    with divided.attach(pipe, 2, 3):
        before = divided.run(pipe)
        pipe.to(dtype=torch.bfloat16)
        found = divided.run(pipe, **half)
    with divided.attach(pipe, 2, 3):
        assert torch.equal(divided.run(pipe, **half), found)
    assert found.dtype == torch.bfloat16 != before.dtype


@ignore_short
@pytest.mark.parametrize("family", ["sd3", *(pytest.param(name, marks=pytest.mark.whole) for name in ("unet", "flux"))])
def test_automatic_casting_on_and_off(family: str) -> None:
    divided = FAMILIES[family]
    pipe = divided.build()

    def call(is_casting: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if is_casting else contextlib.nullcontext():
            return divided.run(pipe)

    plain = [call(is_casting) for is_casting in (False, True)]
    assert relative_error(plain[1], plain[0]) > 1e-4
    with divided.attach(pipe, 2, 3):
        alone = call(False)
    with divided.attach(pipe, 2, 3):
        cast = call(True)
    for first in (False, True):
        with divided.attach(pipe, 2, 3) as async_diff:
            for is_casting in (first, not first, first):
                expected = cast if is_casting else alone
                assert relative_error(call(is_casting), expected) <= (1e-2 if is_casting else 1e-5)
                assert async_diff.report().denoisers[0].counts.rounds > 0
        with divided.attach(pipe, warmup=99):
            for is_casting in (first, not first, first):
                assert torch.equal(call(is_casting), plain[is_casting])


def _in_other_forms(rank: int, executor: str) -> list[Tensor]:
    """Memory order and precision that travel as they are."""
    results = []
    for family, change in (
        ("unet", channels_last),
        ("unet", lambda pipe: pipe.to(dtype=torch.bfloat16)),
        ("flux_true_cfg", lambda pipe: pipe.to(dtype=torch.bfloat16)),
    ):
        divided = FAMILIES[family]
        pipe = divided.build()
        change(pipe)
        inputs = divided.tiny.inputs(pipe)
        dtype = getattr(pipe, divided.tiny.denoiser).dtype
        given = {key: value.to(dtype) for key, value in inputs.items() if isinstance(value, Tensor)}
        with divided.attach(pipe, executor=executor):
            results.append(divided.run(pipe, **given))
    divided = FAMILIES["sd3"]
    pipe = divided.build()
    with divided.attach(pipe, executor=executor), torch.autocast("cpu", torch.bfloat16):
        results.append(divided.run(pipe))
    return results


@pytest.mark.whole
def test_memory_order_and_precision_between_two_processes() -> None:
    expected = _in_other_forms(0, "local")
    first, second = run_ranks(2, _in_other_forms, "distributed")
    for found, other, together in zip(first, second, expected, strict=True):
        assert torch.equal(found, other)
        assert found.dtype == together.dtype
        assert relative_error(found, together) <= (1e-5 if together.dtype == torch.float32 else 1e-2)


MANY = "num_images_per_prompt"


def _divisions(name: str, **arguments: Any) -> list[tuple[tuple[str, ...], ...]]:
    """How the denoisers of a pipeline are divided for a call; every step is computed in full."""
    pipe = PIPELINES[name].build()
    with AsyncDiff(pipe, components=2, executor="local", warmup=100) as async_diff:
        run(pipe, PIPELINES[name], num_inference_steps=2, **arguments)
        return [denoiser.components for denoiser in async_diff.report().denoisers]


@ignore_short
@pytest.mark.parametrize(
    "name",
    ["sdxl_controlnet_xs", *(pytest.param(each, marks=pytest.mark.whole) for each in ("kandinsky3", "sdxl", "flux"))],
)
def test_a_picture_does_not_depend_on_those_beside_it(name: str) -> None:
    """Some were divided otherwise for one picture than for two: costs were those of the batch."""
    assert _divisions(name) == _divisions(name, **{MANY: 2})
