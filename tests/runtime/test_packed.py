"""Differences of live edges in a few bits: what travels, what is held, and that all ranks know the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from asyncdiff import AsyncDiff, ConfigurationError, Method
from asyncdiff.exchange.versions import PackedVersions
from asyncdiff.plan.method import FORECAST, FORECAST_OF_BOTH, FORECAST_OF_KEYS, PAPER
from asyncdiff.plan.packing import packing_for
from asyncdiff.settings import Settings
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run

STEPS = 12


def _drawn(pipe: Any, name: str, settings: dict[str, Any]) -> tuple[Tensor, int, int]:
    """A picture, the bytes that this process sends for it, and those that it holds."""
    with AsyncDiff(pipe, warmup=2, timeout=60, **settings) as async_diff:
        run(pipe, PIPELINES[name], num_inference_steps=STEPS)
        picture = run(pipe, PIPELINES[name], num_inference_steps=STEPS)
        report = async_diff.report()
    return picture, report.bytes_sent, sum(denoiser.held_bytes for denoiser in report.denoisers)


def _on_a_rank(rank: int, name: str, settings: dict[str, Any]) -> tuple[Tensor, int, int]:
    return _drawn(PIPELINES[name].build(), name, {**settings, "executor": "distributed"})


LAYOUTS: list[tuple[int, str, dict[str, Any], float]] = [
    # ranks, pipeline, settings, and how far one process may be off: that of tokens sums in another order.
    (2, "sd15", {"components": 2, "bridge": 2, "method": Method(bits=8)}, 0.0),
    (3, "sd3", {"components": 2, "stride": 2, "max_error": 0.3, "method": Method(bits=4)}, 0.0),
    (2, "sd3", {"components": 2, "shard": True, "resync_every": 4, "method": Method("linear", bits=8)}, 0.0),
    (2, "flux", {"tokens": 2, "fresh": False, "bridge": 2, "method": Method(bits=8)}, 1e-2),
    (4, "sd3", {"tokens": 2, "fresh": False, "guidance": 2, "method": Method(bits=4)}, 1e-2),
]


@pytest.mark.parametrize(
    ("ranks", "name", "settings", "off"),
    [
        pytest.param(*layout, marks=() if number in (0, 3) else pytest.mark.whole)
        for number, layout in enumerate(LAYOUTS)
    ],
)
def test_processes_give_what_one_process_gives(ranks: int, name: str, settings: dict[str, Any], off: float) -> None:
    local, sent_by_all, _ = _drawn(PIPELINES[name].build(), name, {**settings, "executor": "local"})
    everyone = run_ranks(ranks, _on_a_rank, name, settings)
    for picture, *_ in everyone:
        torch.testing.assert_close(picture, local, rtol=0, atol=off * float(local.abs().max()))
        assert torch.equal(picture, everyone[0][0])
    sent = sum(sent for _, sent, _ in everyone)
    assert sent >= sent_by_all > 0  # predictions are sent beside them


@pytest.mark.parametrize("settings", [{"components": 2}, {"tokens": 2, "fresh": False}], ids=["components", "tokens"])
def test_less_travels_and_less_is_held_and_the_picture_is_nearly_the_same(settings: dict[str, Any]) -> None:
    """The tiny numbers are of 32 bits; groups share a scale of 16."""
    found = {}
    for bits in (None, 8, 4):
        pipe = PIPELINES["sd3"].build()
        found[bits] = _drawn(pipe, "sd3", {**settings, "executor": "local", "method": Method(bits=bits)})
    (plain, sent, held), (near, sent_8, held_8), (far, sent_4, held_4) = found.values()
    assert sent_4 < sent_8 < sent / 3 and held_4 < held_8 < held / 2
    pipe = PIPELINES["sd3"].build()
    ordinary = run(pipe, PIPELINES["sd3"], num_inference_steps=STEPS)
    error = float((plain - ordinary).norm())
    assert float((near - plain).norm()) < 0.2 * error and float((far - plain).norm()) < error


@pytest.mark.parametrize("bits", [4, 8])
def test_differences_may_be_larger_than_half_precision_reaches(bits: int) -> None:
    """A number that goes from one end of it to the other, and one at its end, as FLUX clips them."""
    packing = packing_for(bits, [4])
    held = PackedVersions(4, torch.float16, 3, torch.device("cpu"), packing)
    for step, numbers in enumerate(([60000.0, -60000, 1, 65504], [-60000.0, 60000, 2, 65504], [60000.0, 0, 3, -65504])):
        version = torch.tensor(numbers, dtype=torch.float16)
        room = held.room(0, 4)
        room.copy_(version)
        held.put(0, 4, room)
        held.take_over(None if step == 0 else step - 1)
        assert bool(held.newest.isfinite().all())
        assert (held.newest.float() - version.float()).abs().max() <= 120_000 / (2 ** (bits - 1) - 1) * 0.6


@pytest.mark.parametrize("bits", [0, 2, 16, 8.5, True, "8"])
def test_other_numbers_of_bits(bits: Any) -> None:
    with pytest.raises(ConfigurationError, match="bits must be 4, 8 or None"):
        Method(bits=bits)


def test_what_is_said_of_nothing_is_chosen_by_what_moves() -> None:
    """Keys and values in few bits; live edges of components, and what is bridged beside fresh keys, as they are."""
    chosen = [Settings(**given).chosen_method for given in ({"tokens": 4, "fresh": False}, {"tokens": 4}, {})]
    assert chosen == [FORECAST_OF_KEYS, FORECAST, FORECAST]
    assert Settings(tokens=4, components=2).chosen_method == FORECAST_OF_BOTH
    assert Settings(tokens=1, components=2).chosen_method == FORECAST
    assert Settings(tokens=4, fresh=False, method=Method()).chosen_method == FORECAST
    assert Settings(tokens=4, fresh=False, method="paper").chosen_method == PAPER


def test_what_is_held_of_keys_is_no_more_than_two_versions() -> None:
    """Of sites as FLUX's are, in bf16: 4608 keys, of which another rank's 1024 tokens' are a part, 24 heads of 128."""
    numbers, packing = 2 * 24 * 1024 * 128, packing_for(FORECAST_OF_KEYS.bits or 0, [24 * 1024 * 128])
    held = PackedVersions(numbers, torch.bfloat16, FORECAST_OF_KEYS.versions, torch.device("cpu"), packing)
    arriving = packing.nbytes(numbers)
    assert held.bytes - arriving < 1.8 * 2 * numbers, "the newest, and how it differs from those before"
    assert arriving < 0.26 * 2 * numbers
