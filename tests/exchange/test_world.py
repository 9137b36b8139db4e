"""Which device a process takes, and what moves tensors of it."""

import pytest
import torch
import torch.distributed as dist

from asyncdiff import AsyncDiff, ConfigurationError, local_device
from asyncdiff.exchange.groups import backend_for
from tests.processes import run_ranks
from tests.tiny import PIPELINES


@pytest.mark.parametrize(
    ("gpus", "local_rank", "expected"),
    [(0, "1", "cpu"), (2, "1", "cuda:1"), (1, "3", "cuda:0"), (4, None, "cuda:0"), (2, "2", "cuda:0")],
)
def test_devices_are_dealt_out(
    gpus: int, local_rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert local_device() == torch.device(expected)


@pytest.mark.parametrize(
    ("of_group", "device", "expected"),
    [
        ("cpu:gloo,cuda:nccl", "cuda", "nccl"),
        ("cuda:nccl", "cuda", "nccl"),
        ("cpu:gloo,cuda:gloo,mps:gloo", "cuda", "gloo"),
        ("cpu:gloo", "cuda", "gloo"),
        ("cpu:gloo,cuda:nccl", "cpu", "gloo"),
        ("cpu:mpi", "cpu", "mpi"),
    ],
)
def test_the_backend_follows_the_process_group(
    of_group: str, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda group: of_group)
    assert backend_for(torch.device(device)) == expected


def _contradict(rank: int) -> None:
    with pytest.raises(ConfigurationError, match=r"backend='nccl', but the process group that exists moves .* 'gloo'"):
        AsyncDiff(PIPELINES["sd3"].build(), components=2, executor="distributed", backend="nccl")


def test_a_group_of_another_backend_is_not_passed_over() -> None:
    run_ranks(2, _contradict)
