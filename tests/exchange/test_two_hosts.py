"""Two machines, as two network namespaces of one: the picture that one process draws, on both."""

import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff, load_demo

SECONDS = 150
SCRIPT = """
import hashlib
import torch
from asyncdiff import AsyncDiff, load_demo

torch.set_num_threads(1)
pipe = load_demo("unet")
pipe.set_progress_bar_config(disable=True)
with AsyncDiff(pipe, components=2, warmup=2, timeout=60) as async_diff:
    generator = torch.Generator().manual_seed(0)
    image = pipe("a red apple", num_inference_steps=8, generator=generator).images[0]
    print("rank", async_diff.rank, hashlib.sha256(image.tobytes()).hexdigest(), flush=True)
"""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str, str]]]:
    """Two namespaces joined by a cable: their names, network devices and addresses."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and the command ip")
    mark = uuid.uuid4().hex[:6]
    made = [(f"ad{mark}{end}", f"ad{mark}{end}", f"10.213.7.{number}") for number, end in ((1, "a"), (2, "b"))]
    try:
        try:
            for space, _, _ in made:
                _run("ip", "netns", "add", space)
            _run("ip", "link", "add", made[0][1], "type", "veth", "peer", "name", made[1][1])
            for space, device, address in made:
                _run("ip", "link", "set", device, "netns", space)
                for own in ("lo", device):
                    _run("ip", "-n", space, "link", "set", own, "up")
                _run("ip", "-n", space, "address", "add", f"{address}/24", "dev", device)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
        yield made
    finally:
        for space, _, _ in made:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True, timeout=20)


def _drawn_here() -> str:
    pipe: Any = load_demo("unet")
    pipe.set_progress_bar_config(disable=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with AsyncDiff(pipe, components=2, warmup=2, executor="local"):
            generator = torch.Generator().manual_seed(0)
            image = pipe("a red apple", num_inference_steps=8, generator=generator).images[0]
    finally:
        torch.set_num_threads(threads)
    return hashlib.sha256(image.tobytes()).hexdigest()


@pytest.mark.whole
def test_two_hosts_draw_one_picture(hosts: list[tuple[str, str, str]], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    started = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", space, torchrun, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}"),
                *(f"--master-addr={hosts[0][2]}", "--master-port=29500", str(script)),
            ],
            env={**os.environ, "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, (space, device, _) in enumerate(hosts)
    ]
    try:
        told = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    for number, (process, (said, errors)) in enumerate(zip(started, told, strict=True)):
        assert process.returncode == 0, errors
        assert said.split() == ["rank", str(number), _drawn_here()]
