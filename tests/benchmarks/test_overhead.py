"""What a round starts beside its components' own work; counts do not depend on the machine."""

import pytest
import torch

from benchmarks.gpu.loop import Loop, Setting
from benchmarks.gpu.models import SUBJECTS
from benchmarks.overhead import MODELS, MOST_OPERATORS, operators_of


@pytest.mark.parametrize("model", MODELS)
def test_operators_of_a_round(model: str) -> None:
    """The default method, of a U-Net like Stable Diffusion 1.5's and a transformer like FLUX.1's, of tiny width."""
    setting = Setting(torch.device("cpu"), torch.float32, tiny=True)
    call = operators_of(Loop(SUBJECTS[model], setting), None)
    for components, most in MOST_OPERATORS.items():
        loop = Loop(SUBJECTS[model], setting)
        rounds = operators_of(loop, {"components": components})
        assert rounds <= most * call, f"N={components}: {rounds / call:.3f} of a call's in all rounds together"
        assert rounds > 0.9 * call, "something was counted"
