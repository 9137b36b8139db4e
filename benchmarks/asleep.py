"""Hold a plan's predicted times against more processes than there are cores: computing is replaced by SLEEPING.

Every unit of a small denoiser sleeps for as long as the plan's model takes it for, of a call of `--call` seconds (of
half of the batch, half as long). So what is measured is all but the computing: the schedule, the exchange by gloo,
the waiting, and the runtime's own time, which N processes share two cores for. Nothing here says how fast a model is.

Measured and predicted as in `benchmarks.planning`, but for the units, whose lengths are given. The results of other
numbers of processes, which the file has already, stay in it.
"""

import argparse
import functools
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from asyncdiff.denoiser.graph import build_graph
from asyncdiff.denoiser.rates import CPU
from benchmarks.machine import machine
from benchmarks.planning import first_step_of, hold, show, told
from benchmarks.speedup import LARGE_DIT, Settings, Subject, dit

WORLD_SIZES = (3, 4, 6, 8)
LAYERS = 24  # can be shared out evenly by 3, 4, 6 and 8
BATCH = 2  # of a guided call

# As LARGE_DIT, in all else as narrow as it may be: what a layer computes is over long before its time is.
SMALL_DIT = {
    **LARGE_DIT,
    "num_layers": LAYERS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
}


def ways(world_size: int) -> tuple[dict[str, Any], ...]:
    """Some that take all of so many devices."""
    whole = {"components": world_size, "bridge": 1, "guidance": 1, "shard": False}
    found = [whole, whole | {"bridge": 2}, whole | {"shard": True}]
    if world_size % 2 == 0:
        found.append(whole | {"components": world_size // 2, "guidance": 2})
    return tuple(found)


def asleep(call: float) -> Subject:
    """A pipeline whose denoiser's units sleep; a call of both halves of the batch takes so many seconds."""
    subject = dit(SMALL_DIT)
    step = first_step_of(subject)
    graph = build_graph(step.trace, CPU)
    for unit in graph.units:
        module = subject.denoiser.get_submodule(unit.name)
        module.forward = functools.partial(_slept, module.forward, call * unit.time / graph.time)
    return subject


def _slept(forward: Callable[..., Any], seconds: float, *args: Any, **kwargs: Any) -> Any:
    """What a unit gives, once its time is over."""
    begin = time.perf_counter()
    result = forward(*args, **kwargs)
    batch = next(value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    time.sleep(max(0.0, seconds * batch / BATCH - (time.perf_counter() - begin)))
    return result


def work(rank: int, world_size: int, meeting_point: str, settings: Settings, call: float, out: Path) -> None:
    """One of the worker processes."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=world_size)
    try:
        held = hold(f"asleep, {world_size} processes", asleep(call), ways(world_size), settings, are_timed=False)
        if rank == 0:
            show(held)
            out.write_text(json.dumps([told(way) for way in held]), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=list(WORLD_SIZES))
    parser.add_argument("--call", type=float, default=0.4, help="seconds that a call of the denoiser sleeps")
    parser.add_argument("--runs", type=int, default=2, help="turns")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "asleep.json")
    given = parser.parse_args()
    settings = Settings(("asleep",), given.runs, given.steps, given.warmup)
    worlds = {} if not given.out.exists() else {each["processes"]: each for each in json.loads(given.out.read_text())}
    for world_size in given.processes:
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "ways.json"
            arguments = (world_size, str(Path(folder) / "meeting"), settings, given.call, own)
            spawn(work, args=arguments, nprocs=world_size)  # type: ignore[no-untyped-call]
            worlds[world_size] = {
                "processes": world_size,
                "what": "all computing is replaced by sleeping as long as the plan's model takes it for",
                "settings": asdict(settings) | {"call": given.call},
                "machine": machine(),
                "ways": json.loads(own.read_text(encoding="utf-8")),
            }
        content = json.dumps([worlds[each] for each in sorted(worlds)], indent=2)
        given.out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
