"""The untouched pipeline reproduces the goldens' sequential run: what the other goldens are compared on is sound."""

import pytest

from tests.comparison import relative_error
from tests.golden import STEPS, golden_latents, golden_pipeline, golden_sequential, golden_split


def test_untouched_pipeline_reproduces_sequential_latents() -> None:
    pipe, kwargs = golden_pipeline()
    assert relative_error(pipe(**kwargs).images, golden_sequential()) < 1e-4


@pytest.mark.parametrize("n", [2, 3, 4])
def test_warm_up_of_all_steps_is_the_sequential_run(n: int) -> None:
    assert relative_error(golden_latents(n, 1, STEPS, time_shift=False), golden_sequential()) < 1e-4


@pytest.mark.parametrize("n", [2, 3, 4])
def test_split_names_every_parameterised_module_once(n: int) -> None:
    pipe, _ = golden_pipeline()
    components = golden_split(n)
    assert len(components) == n
    prefixes = [name + "." for component in components for name in component]
    for name, _ in pipe.unet.named_parameters():
        owners = sum(name.startswith(prefix) for prefix in prefixes)
        assert owners == (0 if name.startswith("time_embedding.") else 1), name
