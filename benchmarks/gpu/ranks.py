"""Two ranks on one device, over gloo: do they make the picture that one process makes for both?"""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from asyncdiff import AsyncDiff, load_demo

WORLD_SIZE = 2
STEPS = 12
PROMPT = "red apple"
TIMEOUT = 60.0


def two_ranks(limit: float) -> dict[str, Any]:
    """The largest difference of any number of the pictures, or why there is none; in so many seconds at most."""
    return of_two_ranks(limit, "benchmarks.gpu.ranks")


def of_two_ranks(limit: float, module: str, *arguments: str) -> dict[str, Any]:
    """Start a module on both ranks; returns what rank 0 prints last, as JSON, or why there is nothing.

    Args:
        limit: seconds that it may take.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(WORLD_SIZE), "LOCAL_RANK": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", module, *arguments]
    processes = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD_SIZE)
    ]
    deadline = time.monotonic() + limit
    outputs, errors = [], []
    try:
        for process in processes:
            output, error = process.communicate(timeout=max(deadline - time.monotonic(), 1.0))
            outputs.append(output)
            errors.append(error if process.returncode else "")
    except subprocess.TimeoutExpired:
        return {"failure": f"not done within {limit:.0f} s"}
    finally:
        for process in processes:
            process.kill()
    if any(errors):
        return {"failure": " ‖ ".join(error.strip()[-600:] for error in errors if error)}
    found: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return found


def _picture(pipe: Any, executor: Any) -> torch.Tensor:
    """The demo picture, as numbers from 0 to 1."""
    with AsyncDiff(pipe, components=WORLD_SIZE, executor=executor, timeout=TIMEOUT):
        generator = torch.Generator("cpu").manual_seed(0)
        images = pipe(PROMPT, num_inference_steps=STEPS, generator=generator, output_type="pt").images
    return torch.as_tensor(images).float().cpu()


def main() -> None:
    """One of the ranks; rank 0 compares, and prints what it has found."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    try:
        pipe = load_demo("unet").to(device)
        pipe.set_progress_bar_config(disable=True)
        begin = time.perf_counter()
        picture = _picture(pipe, "distributed")
        seconds = time.perf_counter() - begin
        if dist.get_rank() == 0:
            difference = float((picture - _picture(pipe, "local")).abs().max())
            print(json.dumps({"device": str(device), "largest_difference": difference, "seconds": seconds}))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
