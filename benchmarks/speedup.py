"""Measure asyncdiff's speed-up: one process against two, each with one thread.

Two worker processes live through the whole measurement. Sequential and asynchronous generations
alternate, so that what else the machine does falls on both alike.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import diffusers
import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import spawn

from asyncdiff import AsyncDiff, load_demo
from benchmarks.machine import machine

COMPONENTS, STRIDE = 2, 1
WORLD_SIZE = COMPONENTS + STRIDE - 1
Value = TypeVar("Value")

PROMPT = "red apple"
GUIDANCE = 4.0

# Stable Diffusion 1.5 with fewer channels: a denoiser call of a few hundred milliseconds on one thread.
LARGE_UNET = dict(
    sample_size=32,
    block_out_channels=(96, 192, 288, 288),
    attention_head_dim=8,
    cross_attention_dim=768,
)
LARGE_UNET_TEXT_LENGTH = 77

# Stable Diffusion 3 with fewer channels and layers, for pictures of as many tokens.
LARGE_DIT = dict(
    sample_size=32,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=12,
    attention_head_dim=64,
    num_attention_heads=6,
    joint_attention_dim=384,
    caption_projection_dim=384,
    pooled_projection_dim=64,
    pos_embed_max_size=32,
)
# The same as wide as Stable Diffusion 3 medium, and of few layers: what is exchanged at an attention grows with the
# width, what is computed between two of them with its square.
WIDE_DIT = {**LARGE_DIT, "num_layers": 2, "num_attention_heads": 24, "caption_projection_dim": 1536}
DIT_TEXT_LENGTH = 20

# What these denoisers consist of, many times over.
REPEATED_BLOCKS = {"BasicTransformerBlock", "JointTransformerBlock", "ResnetBlock2D"}

# Other ways to use two devices, beside the paper's: AsyncDiff's arguments.
WAYS: dict[str, dict[str, Any]] = {
    "guidance=2": {"guidance": 2, "components": 1},
    "components=2": {"components": 2},
    "components=2 bridge=2": {"components": 2, "bridge": 2},
}
# Of transformers alone.
TOKEN_WAYS: dict[str, dict[str, Any]] = {
    "tokens=2": {"tokens": 2, "guidance": 1},
    "tokens=2 bridge=2": {"tokens": 2, "guidance": 1, "bridge": 2},
}

# A thread that got less of its core than this had to share it.
BUSY = 0.95

# Steps of the generations that only tell what a call costs: under contention, and with hooks.
CALIBRATION_STEPS = 12


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    models: tuple[str, ...]
    runs: int
    steps: int
    warmup: int


@dataclass(frozen=True)
class Subject:
    """A pipeline and the arguments that stand for its prompt."""

    pipe: Any
    arguments: dict[str, Any]

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that predicts the noise."""
        parts = self.pipe.components
        module: torch.nn.Module = parts["unet"] if "unet" in parts else parts["transformer"]
        return module


@dataclass
class CallTimer:
    """Times the denoiser's calls of a plain pipeline."""

    seconds: list[float] = field(default_factory=list)
    _begin: float = 0.0

    def run(self, subject: Subject, steps: int) -> float:
        """One generation; returns the seconds that the pipeline took."""
        hooks = [
            subject.denoiser.register_forward_pre_hook(self._on_begin),
            subject.denoiser.register_forward_hook(self._on_end),
        ]
        try:
            return generate(subject, steps)
        finally:
            for hook in hooks:
                hook.remove()

    def _on_begin(self, *_: object) -> None:
        self._begin = time.perf_counter()

    def _on_end(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self._begin)


@dataclass(frozen=True)
class SequentialRun:
    """A generation by rank 0 alone, while rank 1 sleeps at a barrier."""

    seconds: float
    cpu_seconds: float
    seconds_per_call: float
    seconds_in_calls: float
    idle_rank_cpu_seconds: float


@dataclass(frozen=True)
class RankRun:
    """An asynchronous generation as one rank saw it.

    `*_first_round` is what had come together when the first parallel round was over: what follows
    is the steady state, where a round waits for live edges as well as for the prediction.
    """

    seconds: float
    cpu_seconds: float
    rounds: int
    full_calls: int
    seconds_full: float
    seconds_rounds: float
    seconds_waited: float
    seconds_rounds_first_round: float
    seconds_waited_first_round: float
    bytes_sent: int

    @property
    def round_seconds(self) -> float:
        """Seconds of a steady round."""
        return (self.seconds_rounds - self.seconds_rounds_first_round) / max(self.rounds - 1, 1)

    @property
    def round_wait(self) -> float:
        """Seconds of a steady round spent waiting for the other rank."""
        return (self.seconds_waited - self.seconds_waited_first_round) / max(self.rounds - 1, 1)

    @property
    def round_compute(self) -> float:
        """Seconds of a steady round spent on anything but waiting."""
        return self.round_seconds - self.round_wait


@dataclass(frozen=True)
class Pair:
    """A sequential generation and the asynchronous one after it."""

    sequential: SequentialRun
    asynchronous: tuple[RankRun, ...]

    @property
    def asynchronous_seconds(self) -> float:
        """Until the slower rank was done."""
        return max(run.seconds for run in self.asynchronous)

    @property
    def ratio(self) -> float:
        """The measured speed-up."""
        return self.sequential.seconds / self.asynchronous_seconds


@dataclass(frozen=True)
class Plan:
    """What the library says of its division of the denoiser."""

    shares: tuple[float, ...]
    bytes_per_round: int
    modelled_speedup: float


@dataclass(frozen=True)
class Breakdown:
    """Where the time goes; seconds are medians over the pairs, those of a list are one a rank.

    Attributes:
        call: a plain denoiser call, alone on the machine.
        call_contended: the same while the other rank runs one as well.
        outside_calls: what a sequential step spends outside the denoiser (scheduler, guidance).
        round: a parallel round in the steady state.
        round_wait: the part of it spent waiting for the other rank.
        round_compute: the rest of it.
        expected_compute: share of the cost · call, that is, no loss at all.
        lost_to_contention: share · (call_contended − call).
        lost_to_hooks: what a call costs more when every unit runs through asyncdiff's hooks.
        lost_otherwise: round_compute minus expected_compute and the two above; where the shares,
            which come from counting, are not those of the time, it is positive on one rank and
            negative on the other.
        measured_largest_share: the largest round_compute as a part of call.
        bound: T / (w + (T − w) · c_max), with the library's c_max.
        bound_measured: the same with measured_largest_share: communication left out.
    """

    call: float
    call_contended: float
    outside_calls: float
    round: list[float]
    round_wait: list[float]
    round_compute: list[float]
    expected_compute: list[float]
    lost_to_contention: list[float]
    lost_to_hooks: float
    lost_otherwise: list[float]
    measured_largest_share: float
    bound: float
    bound_measured: float


@dataclass(frozen=True)
class WayResult:
    """Another way than the paper's, with generations of the plain pipeline in turn.

    Attributes:
        arguments: AsyncDiff's.
        modelled_speedup: of the denoising loop, without communication.
        ratios: the measured speed-ups.
        sequential_seconds, asynchronous_seconds: of whole pipeline calls.
        bytes_sent: in one generation, by both ranks.
    """

    arguments: dict[str, Any]
    modelled_speedup: float
    ratios: tuple[float, ...]
    sequential_seconds: tuple[float, ...]
    asynchronous_seconds: tuple[float, ...]
    bytes_sent: int


@dataclass(frozen=True)
class ModelResult:
    """Everything about one model."""

    model: str
    parameters: int
    median_ratio: float
    ratios: tuple[float, ...]
    sequential_seconds: tuple[float, ...]
    asynchronous_seconds: tuple[float, ...]
    first_asynchronous_seconds: float
    plan: Plan
    breakdown: Breakdown
    pairs: tuple[Pair, ...]
    ways: dict[str, WayResult]


def demo_unet() -> Subject:
    """The demo UNet with its prompt encoded."""
    pipe: Any = load_demo("unet")
    embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    return Subject(pipe, {"prompt_embeds": embeds, "negative_prompt_embeds": negative})


def demo_dit() -> Subject:
    """The demo transformer with its prompt encoded."""
    pipe: Any = load_demo("dit")
    embeds, negative = pipe.encode_prompt(PROMPT, device="cpu")
    return Subject(pipe, {"prompt_embeds": embeds, "negative_prompt_embeds": negative})


def large_unet() -> Subject:
    """A UNet shaped like that of Stable Diffusion 1.5, with random weights that are the same in every process."""
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4)
    unet = UNet2DConditionModel(**LARGE_UNET)
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    embeds, negative = torch.randn(2, 1, LARGE_UNET_TEXT_LENGTH, unet.config.cross_attention_dim).unbind()
    return Subject(pipe, {"prompt_embeds": embeds, "negative_prompt_embeds": negative})


def large_dit() -> Subject:
    """A transformer shaped like that of Stable Diffusion 3, with random weights that are the same in every process."""
    return dit(LARGE_DIT)


def wide_dit() -> Subject:
    """One of its real width."""
    return dit(WIDE_DIT)


def dit(config: Mapping[str, Any]) -> Subject:
    """The same of any size."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(**config)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    missing = dict.fromkeys(f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=16).eval(),
        **missing,
    )
    embeds, negative = torch.randn(2, 1, DIT_TEXT_LENGTH, config["joint_attention_dim"]).unbind()
    pooled, negative_pooled = torch.randn(2, 1, config["pooled_projection_dim"]).unbind()
    arguments = {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
        "height": 32,
        "width": 32,
    }
    return Subject(pipe, arguments)


def with_compiled_blocks(build: Callable[[], Subject]) -> Callable[[], Subject]:
    """The same subject, each repeated block of its denoiser compiled on its own."""

    def build_compiled() -> Subject:
        subject = build()
        for module in subject.denoiser.modules():
            if type(module).__name__ in REPEATED_BLOCKS:
                module.compile()
        return subject

    return build_compiled


MODELS: dict[str, Callable[[], Subject]] = {
    "demo-unet": demo_unet,
    "demo-dit": demo_dit,
    "large-unet": large_unet,
    "large-dit": large_dit,
    "wide-dit": wide_dit,
}
COMPILED = {f"{name}-compiled": with_compiled_blocks(build) for name, build in MODELS.items()}


def generate(subject: Subject, steps: int, on_step: Callable[[int], None] | None = None) -> float:
    """One generation up to its latents; returns the seconds that the pipeline took."""

    def step_ended(_pipe: object, index: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(index)
        return tensors

    begin = time.perf_counter()
    subject.pipe(
        **subject.arguments,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=step_ended,
    )
    return time.perf_counter() - begin


def gather(value: Value) -> list[Value]:
    """Everyone's value, in the order of the ranks."""
    everyone: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return cast("list[Value]", everyone)


def run_sequential(subject: Subject, steps: int) -> SequentialRun:
    """Rank 0 runs the plain pipeline, rank 1 sleeps."""
    dist.barrier()
    timer = CallTimer()
    begin_cpu = time.process_time()
    seconds = timer.run(subject, steps) if dist.get_rank() == 0 else 0.0
    dist.barrier()
    cpu = gather(time.process_time() - begin_cpu)
    calls = gather(timer.seconds)[0]
    return SequentialRun(gather(seconds)[0], cpu[0], statistics.median(calls), sum(calls), cpu[1])


def run_asynchronous(subject: Subject, async_diff: AsyncDiff, settings: Settings) -> tuple[RankRun, ...]:
    """Both ranks run the attached pipeline."""
    first_round: dict[str, float] = {}

    def on_step(index: int) -> None:
        if index == settings.warmup:
            report = async_diff.report()
            first_round["rounds"] = report.denoisers[0].counts.seconds_rounds
            first_round["waited"] = report.seconds_waited

    dist.barrier()
    begin_cpu = time.process_time()
    seconds = generate(subject, settings.steps, on_step)
    cpu = time.process_time() - begin_cpu
    report = async_diff.report()
    counts = report.denoisers[0].counts
    run = RankRun(
        seconds=seconds,
        cpu_seconds=cpu,
        rounds=counts.rounds,
        full_calls=counts.full.total(),
        seconds_full=counts.seconds_full,
        seconds_rounds=counts.seconds_rounds,
        seconds_waited=report.seconds_waited,
        seconds_rounds_first_round=first_round["rounds"],
        seconds_waited_first_round=first_round["waited"],
        bytes_sent=report.bytes_sent,
    )
    return tuple(gather(run))


def measure_contended_call(subject: Subject) -> float:
    """A plain denoiser call while the other rank runs one as well: shared caches and memory cost something."""
    dist.barrier()
    timer = CallTimer()
    timer.run(subject, CALIBRATION_STEPS)
    return max(gather(statistics.median(timer.seconds)))


def measure_hooks(subject: Subject) -> float:
    """What running every unit through asyncdiff's hooks adds to a denoiser call; rank 0 alone measures."""
    dist.barrier()
    added = 0.0
    if dist.get_rank() == 0:
        plain, hooked = CallTimer(), CallTimer()
        plain.run(subject, CALIBRATION_STEPS)
        with AsyncDiff(subject.pipe, components=1, warmup=1, executor="local", method="paper"):
            hooked.run(subject, CALIBRATION_STEPS)
        # The first call is traced, and is no parallel round.
        added = statistics.median(hooked.seconds[1:]) - statistics.median(plain.seconds[1:])
    return gather(added)[0]


def measure_model(name: str, settings: Settings) -> ModelResult:
    """All that is measured of one model; both ranks run this."""
    build = {**MODELS, **COMPILED}[name]
    plain, attached = build(), build()
    for subject in (plain, attached):
        subject.pipe.set_progress_bar_config(disable=True)
    with AsyncDiff(
        attached.pipe,
        components=COMPONENTS,
        stride=STRIDE,
        warmup=settings.warmup,
        executor="distributed",
        method="paper",
    ) as async_diff:
        pairs = [
            Pair(run_sequential(plain, settings.steps), run_asynchronous(attached, async_diff, settings))
            for _ in range(settings.runs + 1)
        ]
        denoiser = async_diff.report().denoisers[0]
        dist.barrier()
    plan = Plan(denoiser.shares, denoiser.bytes_per_round, denoiser.modelled_speedup)
    contended = measure_contended_call(plain)
    hooks = measure_hooks(plain)
    first, *timed = pairs
    return ModelResult(
        model=name,
        parameters=sum(parameter.numel() for parameter in plain.denoiser.parameters()),
        median_ratio=statistics.median(pair.ratio for pair in timed),
        ratios=tuple(pair.ratio for pair in timed),
        sequential_seconds=tuple(pair.sequential.seconds for pair in timed),
        asynchronous_seconds=tuple(pair.asynchronous_seconds for pair in timed),
        first_asynchronous_seconds=first.asynchronous_seconds,
        plan=plan,
        breakdown=break_down(timed, plan, settings, contended, hooks),
        pairs=tuple(timed),
        ways={way: measure_way(plain, build(), knobs, settings) for way, knobs in ways_of(plain).items()},
    )


def ways_of(subject: Subject) -> dict[str, dict[str, Any]]:
    """The other ways that its denoiser can go."""
    return WAYS if isinstance(subject.denoiser, UNet2DConditionModel) else {**WAYS, **TOKEN_WAYS}


def measure_way(plain: Subject, attached: Subject, knobs: dict[str, Any], settings: Settings) -> WayResult:
    """How fast another way is; both ranks run this."""
    attached.pipe.set_progress_bar_config(disable=True)
    with AsyncDiff(attached.pipe, warmup=settings.warmup, executor="distributed", **knobs) as async_diff:
        generate(attached, CALIBRATION_STEPS)  # records and divides
        pairs = [
            Pair(run_sequential(plain, settings.steps), run_asynchronous(attached, async_diff, settings))
            for _ in range(settings.runs)
        ]
        modelled = async_diff.report().denoisers[0].modelled_speedup
        dist.barrier()
    return WayResult(
        arguments=knobs,
        modelled_speedup=modelled,
        ratios=tuple(pair.ratio for pair in pairs),
        sequential_seconds=tuple(pair.sequential.seconds for pair in pairs),
        asynchronous_seconds=tuple(pair.asynchronous_seconds for pair in pairs),
        bytes_sent=sum(run.bytes_sent for run in pairs[-1].asynchronous),
    )


def bound(steps: int, warmup: int, largest_share: float) -> float:
    """T / (w + (T − w) · c_max)."""
    return steps / (warmup + (steps - warmup) * largest_share)


def break_down(pairs: list[Pair], plan: Plan, settings: Settings, contended: float, hooks: float) -> Breakdown:
    """Say where the measured time goes."""

    def per_rank(value: Callable[[RankRun], float]) -> list[float]:
        return [statistics.median(value(pair.asynchronous[rank]) for pair in pairs) for rank in range(WORLD_SIZE)]

    call = statistics.median(pair.sequential.seconds_per_call for pair in pairs)
    compute = per_rank(lambda run: run.round_compute)
    expected = [share * call for share in plan.shares]
    contention = [share * (contended - call) for share in plan.shares]
    measured_share = max(compute) / call
    return Breakdown(
        call=call,
        call_contended=contended,
        outside_calls=statistics.median(
            (pair.sequential.seconds - pair.sequential.seconds_in_calls) / settings.steps for pair in pairs
        ),
        round=per_rank(lambda run: run.round_seconds),
        round_wait=per_rank(lambda run: run.round_wait),
        round_compute=compute,
        expected_compute=expected,
        lost_to_contention=contention,
        lost_to_hooks=hooks,
        lost_otherwise=[
            spent - least - shared - hooks for spent, least, shared in zip(compute, expected, contention, strict=True)
        ],
        measured_largest_share=measured_share,
        bound=bound(settings.steps, settings.warmup, max(plan.shares)),
        bound_measured=bound(settings.steps, settings.warmup, measured_share),
    )


def work(rank: int, meeting_point: str, settings: Settings, results: Path) -> None:
    """One of the worker processes."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=WORLD_SIZE)
    try:
        measured = []
        for name in settings.models:
            if rank == 0:
                Console().print(f"measuring {name} …")
            measured.append(measure_model(name, settings))
        if rank == 0:
            save(results, settings, measured)
            show(measured)
    finally:
        dist.destroy_process_group()


def save(path: Path, settings: Settings, measured: list[ModelResult]) -> None:
    """Write everything as JSON."""
    content = {
        "machine": machine(),
        "settings": {
            "components": COMPONENTS,
            "stride": STRIDE,
            "large_unet": LARGE_UNET,
            "large_dit": LARGE_DIT,
            "wide_dit": WIDE_DIT,
            **asdict(settings),
        },
        "models": [asdict(result) for result in measured],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def show(measured: list[ModelResult]) -> None:
    """Print three tables: the speed-ups, those of other ways, and where a round's time goes."""
    console = Console(width=max(Console().width, 130))
    console.print(speedup_table(measured))
    console.print(ways_table(measured))
    console.print(round_table(measured))
    for result in measured:
        if any(pair.sequential.cpu_seconds < BUSY * pair.sequential.seconds for pair in result.pairs):
            console.print(f"{result.model}: the machine was doing other work; these times mean nothing")


def speedup_table(measured: list[ModelResult]) -> Table:
    """Sequential against asynchronous."""
    table = Table(title=f"N={COMPONENTS} S={STRIDE}, the paper's method: two processes against one, one thread each")
    for column in (
        "model",
        "parameters",
        "sequential s",
        "asynchronous s",
        "speed-up (min–max)",
        "bound",
        "bound, measured share",
        "sent MiB",
        "idle rank CPU s",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for result in measured:
        table.add_row(
            result.model,
            f"{result.parameters / 1e6:.1f} M",
            f"{statistics.median(result.sequential_seconds):.2f}",
            f"{statistics.median(result.asynchronous_seconds):.2f}",
            f"{result.median_ratio:.2f} ({min(result.ratios):.2f}–{max(result.ratios):.2f})",
            f"{result.breakdown.bound:.2f}",
            f"{result.breakdown.bound_measured:.2f}",
            f"{sum(run.bytes_sent for run in result.pairs[-1].asynchronous) / 2**20:.2f}",
            f"{max(pair.sequential.idle_rank_cpu_seconds for pair in result.pairs):.3f}",
        )
    return table


def ways_table(measured: list[ModelResult]) -> Table:
    """The other ways to use two devices."""
    table = Table(title="other ways: two processes against one, one thread each")
    for column in ("model", "way", "sequential s", "asynchronous s", "speed-up (min–max)", "modelled", "sent MiB"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for result in measured:
        for way, found in result.ways.items():
            table.add_row(
                result.model,
                way,
                f"{statistics.median(found.sequential_seconds):.2f}",
                f"{statistics.median(found.asynchronous_seconds):.2f}",
                f"{statistics.median(found.ratios):.2f} ({min(found.ratios):.2f}–{max(found.ratios):.2f})",
                f"{found.modelled_speedup:.2f}",
                f"{found.bytes_sent / 2**20:.2f}",
            )
    return table


def round_table(measured: list[ModelResult]) -> Table:
    """Where the time of a steady round goes, a row for each rank."""
    table = Table(title="a steady parallel round, milliseconds")
    for column in (
        "model",
        "rank",
        "share",
        "plain call",
        "round",
        "expected",
        "contention",
        "hooks",
        "otherwise",
        "wait",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for result in measured:
        parts = result.breakdown
        for rank in range(WORLD_SIZE):
            seconds = (
                parts.call,
                parts.round[rank],
                parts.expected_compute[rank],
                parts.lost_to_contention[rank],
                parts.lost_to_hooks,
                parts.lost_otherwise[rank],
                parts.round_wait[rank],
            )
            table.add_row(
                result.model if rank == 0 else "",
                str(rank),
                f"{result.plan.shares[rank]:.1%}",
                *(f"{1000 * value:.1f}" for value in seconds),
            )
    return table


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *COMPILED], default=list(MODELS), help="which models")
    parser.add_argument("--runs", type=int, default=3, help="timed pairs of generations")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of a generation")
    parser.add_argument("--warmup", type=int, default=3, help="steps that the ordinary denoiser computes at first")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speedup.json", help="result")
    given = parser.parse_args()
    if given.runs < 1 or given.warmup < 1 or given.steps < given.warmup + 2:
        parser.error("needed: a run, a warm-up step, and at least two steps after the warm-up")
    return given


def main() -> None:
    """Start the workers."""
    given = arguments()
    settings = Settings(tuple(given.models), given.runs, given.steps, given.warmup)
    # For the workers; a library reads the number of threads as it is loaded.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers beside the workers
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, args=(str(Path(folder) / "meeting"), settings, given.out), nprocs=WORLD_SIZE)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
