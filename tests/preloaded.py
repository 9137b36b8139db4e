"""What every test process needs: imported once, in the process from which they fork."""

# ruff: noqa: E402
import gc

gc.disable()  # until all is imported

import diffusers
import torch

import asyncdiff
import tests.golden
import tests.tiny

for _name in asyncdiff.__all__:
    getattr(asyncdiff, _name)  # which is when its module is imported
torch.set_num_threads(1)
gc.freeze()  # what is imported is no garbage in any of them
gc.set_threshold(20_000)
gc.enable()
__all__ = ["asyncdiff", "diffusers", "tests"]
