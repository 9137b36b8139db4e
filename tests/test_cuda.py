"""On a GPU: what holds on the CPU, the way through NCCL, and two ranks that share one device.

Skipped where there is no GPU. One is enough.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff import AsyncDiff, ExchangeError, Method, load_demo
from asyncdiff.events import Events
from asyncdiff.exchange.world import LocalWorld
from asyncdiff.runtime.units import UnitHooks
from asyncdiff.settings import Settings
from benchmarks.gpu.loop import Loop, Setting
from benchmarks.gpu.models import SUBJECTS
from benchmarks.gpu.solo import attached
from tests.comparison import relative_error
from tests.processes import run_ranks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STEPS = 14
DEVICE_ROW = 1  # of a trace
MODELS = ("unet", "dit")


def _pipe(model: str, dtype: torch.dtype = torch.float32) -> Any:
    pipe = load_demo(model, torch_dtype=dtype).to("cuda:0")  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _draw(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents: Tensor = pipe("rocket", num_inference_steps=STEPS, generator=generator, output_type="latent").images
    return latents.cpu()


@pytest.mark.parametrize("model", MODELS)
def test_warm_up_throughout_is_the_ordinary_pipeline(model: str) -> None:
    pipe = _pipe(model)
    plain = _draw(pipe)
    with AsyncDiff(pipe, components=2, warmup=99, executor="local"), pytest.warns(UserWarning, match="accelerates"):
        assert torch.equal(_draw(pipe), plain)
    assert torch.equal(_draw(pipe), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        *[(model, {"components": 1, "bridge": 2}) for model in MODELS],
        *[(model, {"components": parts}) for model in MODELS for parts in (2, 3)],
        *[("dit", {"tokens": parts, "fresh": False}) for parts in (2, 3)],
        *[("dit", {"tokens": parts, "method": Method(bits=8)}) for parts in (2, 3)],
    ],
    ids=str,
)
def test_rounds(model: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    pipe = _pipe(model, dtype)
    plain = _draw(pipe).float()
    with AsyncDiff(pipe, executor="local", **settings):
        found = _draw(pipe).float()
        assert torch.isfinite(found).all()
        assert 0 < relative_error(found, plain) < 0.5


@pytest.mark.parametrize("parts", [2, 3])
def test_tokens_with_fresh_keys_are_the_ordinary_pipeline(parts: int) -> None:
    pipe = _pipe("dit")
    plain = _draw(pipe)
    with AsyncDiff(pipe, tokens=parts, executor="local"):
        _draw(pipe)  # where the tokens lie is found in it
        assert relative_error(_draw(pipe), plain) < 1e-3


def test_a_trace_has_the_device_s_times(tmp_path: Path) -> None:
    pipe = _pipe("unet")
    with AsyncDiff(pipe, components=2, executor="local") as attached:
        _draw(pipe)
        begin = time.monotonic()
        with attached.trace(tmp_path / "trace.json"):
            _draw(pipe)
        seconds = time.monotonic() - begin
    entries = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    steps = [each for each in entries if each.get("cat") == "step" and each["tid"] == DEVICE_ROW]
    assert len(steps) == STEPS
    assert 0 < sum(step["dur"] for step in steps) < 1e6 * seconds


def test_rounds_as_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same generation on both; single precision, no shortcuts in products.

    One component with forecasts: several are cut elsewhere on a device that weighs bytes and arithmetic otherwise.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for device in ("cpu", "cuda:0"):
        pipe = load_demo("unet", torch_dtype=torch.float32).to(device)
        pipe.set_progress_bar_config(disable=True)
        with AsyncDiff(pipe, components=1, bridge=2, executor="local"):
            found.append(_draw(pipe))
    assert relative_error(found[1], found[0]) < 1e-2


@pytest.mark.parametrize(
    ("model", "settings"),
    [("sd15", {"components": 2}), ("flux", {"components": 2}), ("flux", {"tokens": 2, "fresh": False})],
    ids=str,
)
def test_no_round_waits_for_the_device(model: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is under way: whatever reads a number off the device, or copies to it and waits, raises here."""
    device, plain = torch.device("cuda:0"), UnitHooks.walk
    loop = Loop(SUBJECTS[model], Setting(device, torch.bfloat16, tiny=True))

    def walk(self: UnitHooks, *given: Any) -> Any:
        walks.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(walks) > 14 else "default")
        try:
            return plain(self, *given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    walks: list[int] = []
    with attached(loop, Settings(warmup=2, **settings), LocalWorld(2, device)):
        loop(STEPS, lambda _, call: call())
        monkeypatch.setattr(UnitHooks, "walk", walk)
        loop(STEPS, lambda _, call: call())
    assert len(walks) > 18


def test_memory_is_given_back() -> None:
    pipe = _pipe("unet")
    _draw(pipe)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with AsyncDiff(pipe, components=2, executor="local"):
        torch.cuda.reset_peak_memory_stats()
        _draw(pipe)
        assert torch.cuda.max_memory_allocated() > before
        assert torch.cuda.memory_allocated() <= before  # at the end of the generation
    assert torch.cuda.memory_allocated() <= before


def _two_on_one(rank: int, model: str, settings: dict[str, Any], tolerance: float) -> tuple[Tensor, Tensor]:
    pipe = _pipe(model)
    with AsyncDiff(pipe, executor="distributed", timeout=60, **settings):
        first, second = _draw(pipe), _draw(pipe)
    # Where tokens are divided the first call of all is an ordinary one: it is recorded.
    assert relative_error(first, second) <= tolerance
    local = settings if "tokens" in settings else {"components": 1, **settings}
    with AsyncDiff(pipe, executor="local", **local):
        return first, _draw(pipe)


@pytest.mark.parametrize(
    ("model", "settings", "tolerance"),
    [
        ("unet", {"components": 2}, 0.0),
        ("dit", {"components": 2, "bridge": 2}, 0.0),
        ("unet", {"guidance": 2, "components": 1}, 0.0),
        ("dit", {"tokens": 2}, 1e-4),
        ("dit", {"tokens": 2, "method": Method(bits=8)}, 1e-2),
        # A number that is rounded otherwise may fall on the other side of one of 16 codes.
        ("dit", {"tokens": 2, "fresh": False}, 0.05),
    ],
    ids=str,
)
def test_two_ranks_on_one_gpu_by_way_of_the_host(model: str, settings: dict[str, Any], tolerance: float) -> None:
    """On the user's own gloo group."""
    for distributed, local in run_ranks(2, _two_on_one, model, settings, tolerance, limit=240):
        assert relative_error(distributed, local) < max(tolerance, 1e-5)


def _two_lines(rank: int) -> tuple[Tensor, Tensor, str, list[str]]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("asyncdiff")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    pipe = _pipe("dit")
    with AsyncDiff(pipe, guidance=1, timeout=60) as attached:
        _draw(pipe)
        found, report = _draw(pipe), str(attached.report())
    settings: dict[str, Any] = {"tokens": 2} if "P=2" in report else {"components": 2}
    with AsyncDiff(pipe, executor="local", **settings):
        return found, _draw(pipe), report, said


def test_an_axis_is_chosen() -> None:
    """What two lines do: two ranks on one GPU time both ways, and take the same one."""
    for found, local, report, said in run_ranks(2, _two_lines, limit=240):
        assert ("P=2" in report) != ("N=2" in report)
        assert sum("as modelled by" in line for line in said) == 1
        assert relative_error(found, local) < 1e-3


def _shared_out(rank: int, model: str) -> tuple[Tensor, Tensor, int]:
    pipe = load_demo(model)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"components": 2, "shard": True, "executor": "distributed", "timeout": 60}
    torch.nn.Linear(8, 8, device="cuda:0")(torch.ones(8, 8, device="cuda:0"))  # libraries take memory for themselves
    before = torch.cuda.memory_allocated()
    attached = AsyncDiff(pipe, warmup=99, **given)
    found = _draw(pipe)
    held = torch.cuda.memory_allocated() - before
    attached.gather()
    return found, _draw(pipe.to("cuda:0")), held


@pytest.mark.parametrize("model", MODELS)
def test_a_share_of_the_weights_each(model: str) -> None:
    """Two ranks on one GPU, each with its own half; steps in full go from one to the other."""
    whole = sum(each.numel() * each.element_size() for part in _parts(_pipe(model)) for each in part.parameters())
    for found, plain, held in run_ranks(2, _shared_out, model, limit=240):
        assert relative_error(found, plain) < 1e-5
        assert 0 < held < 0.8 * whole


def _parts(pipe: Any) -> list[torch.nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _alone_on_nccl(rank: int, starts_lazily: bool) -> tuple[str, Tensor]:
    if starts_lazily:
        dist.init_process_group("nccl")
    pipe = _pipe("unet")
    with AsyncDiff(pipe, components=1, bridge=2, executor="distributed", timeout=60):
        return dist.get_backend(), _draw(pipe)


@pytest.mark.parametrize("starts_lazily", [False, True])
def test_one_rank_on_nccl(starts_lazily: bool) -> None:
    pipe = _pipe("unet")
    with AsyncDiff(pipe, components=1, bridge=2, executor="local"):
        expected = _draw(pipe)
    ((backend, found),) = run_ranks(1, _alone_on_nccl, starts_lazily, joined=False)
    assert backend == "nccl" and torch.equal(found, expected)


def _with_itself(rank: int) -> list[float]:
    """A rank on NCCL that sends to itself, through all that the library does to a batch."""
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    from asyncdiff.exchange.fault import Fault
    from asyncdiff.exchange.groups import Groups
    from asyncdiff.exchange.line import Line, Transfer
    from asyncdiff.exchange.protocol import Traffic

    device = torch.device("cuda:0")
    dist.init_process_group("nccl", device_id=device)
    fault, traffic = Fault(HashStore(), "a fault", 0, [0]), Traffic()
    line = Line(Groups(None, 30.0), device, "nccl", 30.0, fault, Events(device))
    received = torch.zeros(5, device=device)
    for number in range(20):
        sent = torch.full((5,), float(number), device=device, dtype=torch.float32)
        batch = [Transfer(True, 0, sent, "to itself"), Transfer(False, 0, received, "from itself")]
        line.start(batch, traffic).wait()
        received += 1
    found: list[float] = received.tolist()
    line.close()
    dist.destroy_process_group()
    return found


def test_a_batch_on_nccl() -> None:
    assert run_ranks(1, _with_itself, joined=False) == [[20.0] * 5]


def _two_on_one_by_nccl(rank: int) -> tuple[str, float]:
    begin = time.monotonic()
    try:
        AsyncDiff(_pipe("unet"), components=2, executor="distributed", timeout=30)
    except ExchangeError as error:
        return str(error), time.monotonic() - begin
    return "", 0.0


def test_two_ranks_on_one_gpu_by_nccl_are_refused() -> None:
    """NCCL gives every rank a device of its own."""
    for message, seconds in run_ranks(2, _two_on_one_by_nccl, joined=False, limit=120):
        assert "backend='gloo'" in message and seconds < 60
