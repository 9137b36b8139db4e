"""What can be said without a model is said without the libraries that compute, which take seconds to import."""

import subprocess
import sys

import pytest

import asyncdiff

HEAVY = ("torch", "diffusers", "transformers")

SAYING = """
import sys
from typer.testing import CliRunner
from asyncdiff.commands.app import app

for typed, code in (
    ("--help", 0),
    *((f"{command} --help", 0) for command in ("generate", "inspect", "plan", "models", "evaluate", "serve")),
    ("generate rocket --component 2", 2),
    ("generate rocket --components 2 --bridge 2 --target-speedup 2", 2),
    ("generate rocket --components 2 --devices 3", 2),
    ("generate rocket --out picture.nonsense", 2),
    ("evaluate --compare-with colour=red", 2),
    ("evaluate --prompts nowhere.txt", 2),
    ("plan --devices 2 --link string", 2),
    ("inspect --model nowhere/at/all", 2),
    ("serve --host 0.0.0.0", 2),
    ("serve --components 3", 2),
):
    done = CliRunner().invoke(app, typed.split())
    assert done.exit_code == code, (typed, done.output, done.exception)
"""
# The process that starts the service imports it, and so do those that requests come to.
SERVING = "import sys, asyncdiff.serving.service"
# Where nothing that is sent is torch's, a parcel is opened without it.
PARCELS = """
import sys
import numpy as np
from PIL import Image
from asyncdiff.lora import Lora
from asyncdiff.serving.orders import Drawn, Order
from asyncdiff.workers.parcel import pack, unpack

order = Order(1, {"prompt": "one", "image": Image.new("RGB", (8, 8)), "numbers": np.ones(2)}, 0, {"components": 2})
assert unpack(pack(order)).arguments["prompt"] == "one"
"""


@pytest.mark.parametrize("code", [SAYING, SERVING, PARCELS], ids=["commands", "service", "parcels"])
def test_nothing_that_computes_is_imported(code: str) -> None:
    code += f"\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_all_names_are_there_and_known() -> None:
    assert set(asyncdiff.__all__) <= set(dir(asyncdiff))
    assert all(callable(getattr(asyncdiff, name)) for name in asyncdiff.__all__)
    assert asyncdiff.plan.__module__ == "asyncdiff.planning.asked"  # and not the room of that name
    with pytest.raises(AttributeError, match="has no attribute 'Asyncdiff'"):
        _ = asyncdiff.Asyncdiff
