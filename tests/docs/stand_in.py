"""Runs a code block of the docs on this rank as it stands there, with stand-ins for what a test machine has not.

Started by torchrun: `stand_in.py BLOCK DEMO FOLDER`. Hub names give the demo pipeline DEMO, and devices are the CPU.
The block's pipeline is then called once more, as in a session that goes on. Both pictures are left in FOLDER.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from asyncdiff import load_demo, loading
from asyncdiff.demo import demo_folder

STEPS = 12  # of the second call


def main(block: Path, demo: Any, folder: Path) -> None:
    stand_in = load_demo(demo)

    def from_pretrained(kind: type, name: str, **given: Any) -> DiffusionPipeline:
        assert "/" in name, f"{name!r} is no hub name"
        return stand_in

    def to(pipe: DiffusionPipeline, *given: Any, **named: Any) -> DiffusionPipeline:
        return pipe  # there is no GPU, and half precision takes a CPU far longer

    if "from_pretrained" in block.read_text(encoding="utf-8"):
        DiffusionPipeline.from_pretrained = classmethod(from_pretrained)
        DiffusionPipeline.to = to
    loading._fetched = lambda model: demo_folder(demo)
    torch.set_num_threads(1)
    names: dict[str, Any] = {"__name__": "__main__"}
    os.chdir(folder)
    exec(compile(block.read_text(encoding="utf-8"), str(block), "exec"), names)
    again = names["pipe"]("a red apple", num_inference_steps=STEPS).images[0]
    for number, picture in enumerate((names["image"], again)):
        picture.save(f"rank{os.environ['RANK']}-{number}.png")
    report = names["async_diff"].report()
    if int(os.environ["WORLD_SIZE"]) > 1:
        assert report.accelerated and report.executor == "distributed", report


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
