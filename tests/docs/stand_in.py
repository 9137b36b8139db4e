"""Runs code blocks of the docs on this rank as they stand there, with stand-ins for what a test machine has not.

Started by torchrun: `stand_in.py MODEL FOLDER...`; each folder has a block, `script.py`. Hub names give the pipeline in
the folder MODEL, demo models are those beside it, and devices are the CPU. A block's pipeline is then called once more,
as in a session that goes on, and detached from before the next block. Both pictures are left in the block's folder.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import DiffusionPipeline

import asyncdiff
from asyncdiff import loading

STEPS = 12  # of the second call


def main(model: Path, folder: Path) -> None:
    stand_in, block = loading.load_pipeline(str(model), None, torch.device("cpu")), folder / "script.py"

    def from_pretrained(kind: type, name: str, **given: Any) -> DiffusionPipeline:
        assert "/" in name, f"{name!r} is no hub name"
        return stand_in

    def to(pipe: DiffusionPipeline, *given: Any, **named: Any) -> DiffusionPipeline:
        return pipe  # there is no GPU, and half precision takes a CPU far longer

    def load_demo(name: str) -> DiffusionPipeline:
        return loading.load_pipeline(str(model.with_name(name)), None, torch.device("cpu"))

    torch.set_num_threads(1)
    names: dict[str, Any] = {"__name__": "__main__"}
    os.chdir(folder)
    with contextlib.ExitStack() as stack:
        if "from_pretrained" in block.read_text(encoding="utf-8"):
            stack.enter_context(mock.patch.object(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained)))
            stack.enter_context(mock.patch.object(DiffusionPipeline, "to", to))
        stack.enter_context(mock.patch.object(asyncdiff, "load_demo", load_demo))
        stack.enter_context(mock.patch.object(loading, "_fetched", return_value=model))
        exec(compile(block.read_text(encoding="utf-8"), str(block), "exec"), names)
    again = names["pipe"]("a red apple", num_inference_steps=STEPS).images[0]
    for number, picture in enumerate((names["image"], again)):
        picture.save(f"rank{os.environ['RANK']}-{number}.png")
    report = names["async_diff"].report()
    if int(os.environ["WORLD_SIZE"]) > 1:
        assert report.accelerated and report.executor == "distributed", report
    names["async_diff"].gather()  # detached from, and whole


if __name__ == "__main__":
    for place in sys.argv[2:]:
        main(Path(sys.argv[1]), Path(place))
