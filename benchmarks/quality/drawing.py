"""Draws the pictures of a point, and keeps those of the plain pipeline."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    TaylorSeerCacheConfig,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.demo import DemoName, demo_prompts
from asyncdiff.loading import load_pipeline
from asyncdiff.report import DenoiserReport
from benchmarks.quality.settings import Setting

TRACED = 16  # of so many pictures the latents of every step are kept

# From the configuration of the scheduler that the demo pipeline comes with.
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ddim": DDIMScheduler.from_config,
    "dpm++2m": DPMSolverMultistepScheduler.from_config,
    "euler": EulerDiscreteScheduler.from_config,
    "euler-ancestral": EulerAncestralDiscreteScheduler.from_config,
    "flow-euler": FlowMatchEulerDiscreteScheduler.from_config,
    "flow-euler-stochastic": functools.partial(FlowMatchEulerDiscreteScheduler.from_config, stochastic_sampling=True),
}

_TAYLORSEER_MODULES = [r"^transformer_blocks\.\d+$"]


@dataclass(frozen=True)
class Drawn:
    """The pictures of one point.

    Attributes:
        pictures: shape (count, 3, height, width), values from 0 to 1.
        latents: of the last step.
        traced: latents after every step, of the first pictures.
    """

    pictures: Tensor
    latents: Tensor
    traced: Tensor


@dataclass
class Account:
    """What drawing took: every batch is a generation of its own.

    Attributes:
        shares_of_time: for each generation, its modelled time over that of the plain pipeline.
        full: full denoiser calls by reason, over all generations.
    """

    shares_of_time: list[float]
    full: Counter[str]

    @property
    def modelled_speedup(self) -> float:
        """Of the denoising loop, without communication."""
        return len(self.shares_of_time) / sum(self.shares_of_time)

    def add(self, report: DenoiserReport) -> None:
        """Count a generation in."""
        self.shares_of_time.append(1 / report.modelled_speedup)
        self.full += report.counts.full


def prompt_numbers(count: int) -> list[int]:
    """Which of the demo's prompts are drawn: evenly chosen; of 2·n prompts every other one is one of n."""
    known = len(demo_prompts())
    return [place * known // count for place in range(count)]


def draw(
    setting: Setting,
    numbers: list[int] | None = None,
    executor: Literal["local", "distributed"] = "local",
    device: str = "cpu",
) -> tuple[Drawn, Account]:
    """Draw a point's pictures, or those of the given prompts."""
    chosen = numbers or prompt_numbers(setting.prompts)
    pipe = load(setting.model, setting.scheduler, device)
    account = Account([], Counter())
    if setting.taylorseer:
        with _taylorseer(pipe.transformer, setting.taylorseer, setting.warmup) as generation:
            drawn = _generate(pipe, setting, chosen, generation)
        account.shares_of_time.append(_taylorseer_share(setting.taylorseer, setting.warmup, setting.steps))
        return drawn, account
    knobs: dict[str, Any] = {
        "components": setting.components,
        "stride": setting.stride,
        "warmup": setting.warmup,
        "bridge": setting.bridge,
        "method": setting.method,
        "executor": executor,
    }
    knobs |= {"guidance": setting.guidance} if setting.guidance > 1 else {}
    knobs |= {"max_error": setting.max_error} if setting.max_error is not None else {}
    knobs |= {"cooldown": setting.cooldown} if setting.cooldown is not None else {}
    with AsyncDiff(pipe, **knobs) as attached:

        @contextmanager
        def generation() -> Iterator[None]:
            yield
            account.add(attached.report().denoisers[0])

        return _generate(pipe, setting, chosen, generation), account


def draw_sequentially(setting: Setting, numbers: list[int] | None = None, device: str = "cpu") -> Drawn:
    """Draw the same pictures with the plain pipeline."""
    pipe = load(setting.model, setting.scheduler, device)
    return _generate(pipe, setting, numbers or prompt_numbers(setting.prompts), nullcontext)


def reference_path(setting: Setting, folder: Path) -> Path:
    """Where the plain pipeline's pictures are kept that a point is compared with."""
    words = (setting.model, setting.scheduler, setting.steps, setting.guidance_scale, setting.prompts, setting.batch)
    return folder / ("-".join(map(str, words)) + ".safetensors")


def reference(setting: Setting, folder: Path, device: str = "cpu") -> Drawn:
    """The plain pipeline's pictures, drawn if they are not there yet."""
    path = reference_path(setting, folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        save_file(vars(draw_sequentially(setting, device=device)), unfinished)
        unfinished.replace(path)
    return Drawn(**load_file(path))


def load(model: DemoName, scheduler: str, device: str = "cpu") -> Any:
    """A demo pipeline with one of the schedulers."""
    pipe, config = _loaded(model, device)
    pipe.scheduler = SCHEDULERS[scheduler](config)
    return pipe


@functools.cache
def _loaded(model: DemoName, device: str) -> tuple[Any, Any]:
    """A demo pipeline, and the configuration of the scheduler that it comes with."""
    pipe = load_pipeline(f"demo-{model}", "float32", torch.device(device))
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe.scheduler.config


def _generate(
    pipe: Any, setting: Setting, numbers: list[int], generation: Callable[[], AbstractContextManager[None]]
) -> Drawn:
    """Draw prompt by prompt; the seed of a picture is its prompt's number, whatever it is drawn together with."""
    prompts = demo_prompts()
    pictures, latents = [], []
    traced: list[Tensor] = []
    for start in range(0, len(numbers), setting.batch):
        part = numbers[start : start + setting.batch]
        steps: list[Tensor] = []

        def keep(_: Any, index: int, timestep: Any, tensors: dict[str, Tensor], kept: list[Tensor] = steps) -> Any:
            kept.append(tensors["latents"].cpu())
            return tensors

        torch.manual_seed(part[0])  # for samplers whose noise a pipeline draws without its generators
        with generation():
            output = pipe(
                [prompts[number] for number in part],
                num_inference_steps=setting.steps,
                guidance_scale=setting.guidance_scale,
                generator=[torch.Generator().manual_seed(number) for number in part],
                output_type="pt",
                callback_on_step_end=keep,
            )
        pictures.append(output.images.float().cpu().contiguous())
        latents.append(steps[-1])
        if start < TRACED:
            traced.append(torch.stack(steps))
    return Drawn(torch.cat(pictures), torch.cat(latents), torch.cat(traced, dim=1)[:, :TRACED].contiguous())


@contextmanager
def _taylorseer(transformer: Any, interval: int, warmup: int) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Diffusers' TaylorSeer cache; yields what has to surround a generation."""
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=warmup,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=_TAYLORSEER_MODULES,
    )
    transformer.enable_cache(config)

    @contextmanager
    def generation() -> Iterator[None]:
        yield
        transformer._reset_stateful_cache()

    try:
        yield generation
    finally:
        transformer.disable_cache()


def _taylorseer_share(interval: int, warmup: int, steps: int) -> float:
    """The modelled share of the plain pipeline's time: predicted steps cost nothing, like bridged ones of asyncdiff."""
    full = [step for step in range(steps) if step < warmup or (step - warmup - 1) % interval == 0]
    return len(full) / steps
