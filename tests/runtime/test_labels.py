"""Labels of later steps: the pipeline's own transformation, learnt from the warm-up."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff import LabelError
from asyncdiff.runtime.labels import Labels, Timetable

TIMESTEPS = [999.0, 800.0, 650.0, 300.0, 50.0]


def learnt(transform, start: int = 0, seen: int = 2, timesteps=TIMESTEPS, sigmas=()) -> Labels:
    labels = Labels(Timetable(tuple(timesteps), tuple(sigmas)))
    for index in range(seen):
        timestep = timesteps[start + index]
        labels.given(index, transform(timestep))
        labels.learn(index, torch.tensor(timestep))
    labels.given(seen, transform(timesteps[start + seen]))
    return labels


@given(st.sampled_from([(1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0), (0.5, 3.0)]), st.integers(1, 3))
def test_affine_transformations(line: tuple[float, float], batch: int) -> None:
    def transform(timestep: float) -> torch.Tensor:
        return torch.full((batch,), line[0] * timestep + line[1])

    found = learnt(transform).argument(4, 2)
    assert found.shape == (batch,)
    assert torch.allclose(found, transform(TIMESTEPS[4]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_labels_are_rounded_as_the_pipeline_rounds_them(dtype: torch.dtype) -> None:
    """FLUX casts the timestep to the model's type, and divides it then."""
    timesteps = [1000.0, 871.3, 742.7, 614.8, 333.3]

    def transform(timestep: float) -> torch.Tensor:
        return torch.tensor([timestep]).to(dtype) / 1000

    assert torch.equal(learnt(transform, timesteps=timesteps).argument(3, 2), transform(614.8))


def test_labels_given_as_they_are_stay_exact() -> None:
    labels = learnt(lambda timestep: torch.tensor(int(timestep)))
    assert torch.equal(labels.argument(3, 2), torch.tensor(300))
    assert labels.last() == 4


def test_a_loop_that_starts_late() -> None:
    """Image-to-image skips the scheduler's first timesteps."""
    labels = learnt(lambda timestep: torch.tensor([timestep]), start=1)
    assert labels.last() == 3
    assert labels.argument(3, 2).item() == 50.0


def test_earlier_labels_are_those_that_were_given() -> None:
    labels = learnt(lambda timestep: torch.tensor([timestep**2]))
    assert labels.argument(1, 2).item() == pytest.approx(800.0**2)


def test_numbers_of_several_kinds() -> None:
    """Wan 2.2 gives the tokens of the picture that it starts from the timestep 0."""

    def transform(timestep: float) -> torch.Tensor:
        return torch.tensor([[0.0, timestep, 1.0 - timestep / 1000, 0.0, 7.0]])

    assert torch.allclose(learnt(transform).argument(4, 2), transform(TIMESTEPS[4]))


def test_one_warm_up_step_tells_a_proportion_but_no_line() -> None:
    labels = learnt(lambda timestep: torch.tensor([timestep / 1000]), seen=1)
    assert labels.argument(2, 1).item() == pytest.approx(0.65)
    with pytest.raises(LabelError, match="could be told from 2 of them"):
        learnt(lambda timestep: torch.tensor([(1000 - timestep) / 1000]), seen=1).argument(2, 1)


def test_timesteps_that_come_twice() -> None:
    """A second-order scheduler's; a loop that starts at the second of a pair is found from what follows."""
    timesteps = [999.0, 800.0, 800.0, 650.0, 650.0, 300.0, 300.0]
    labels = learnt(lambda timestep: torch.tensor([timestep]), start=2, timesteps=timesteps)
    assert labels.last() == 4
    assert labels.argument(4, 2).item() == 300.0


def test_labels_that_follow_the_noise_level() -> None:
    """The latent upscaler's UNet is given a quarter of the logarithm of sigma."""
    sigmas = [14.6, 5.3, 2.9, 0.6, 0.05]
    scale = dict(zip(TIMESTEPS, sigmas, strict=True))

    def transform(timestep: float) -> torch.Tensor:
        return torch.tensor([0.25 * math.log(scale[timestep])])

    assert torch.allclose(learnt(transform, sigmas=sigmas).argument(4, 2), transform(TIMESTEPS[4]))


def test_labels_of_angles() -> None:
    angles = [1.57, 1.2, 0.9, 0.4, 0.1]

    def transform(angle: float) -> torch.Tensor:
        return torch.tensor([math.sin(angle) / (math.sin(angle) + math.cos(angle))])

    assert torch.allclose(learnt(transform, timesteps=angles).argument(4, 2), transform(0.1))


def test_labels_that_are_flow_times_of_noise_levels() -> None:
    sigmas = [80.0, 9.0, 2.0, 0.7, 0.1]
    scale = dict(zip(TIMESTEPS, sigmas, strict=True))

    def transform(timestep: float) -> torch.Tensor:
        return torch.tensor([scale[timestep] / (1 + scale[timestep])])

    assert torch.allclose(learnt(transform, sigmas=sigmas).argument(4, 2), transform(TIMESTEPS[4]))


def test_one_of_several_numbers_stands_still() -> None:
    labels = learnt(lambda timestep: torch.tensor([0.1, timestep]), seen=1)
    assert torch.allclose(labels.argument(2, 1), torch.tensor([0.1, 650.0]))


def test_a_time_that_stands_still() -> None:
    assert learnt(lambda timestep: torch.tensor([7.0, 3.0])).argument(4, 2).tolist() == [7.0, 3.0]


def test_what_cannot_be_derived() -> None:
    squares = learnt(lambda timestep: torch.tensor([timestep**2]), seen=3)
    with pytest.raises(LabelError, match="no affine function"):
        squares.argument(4, 3)
    growing = learnt(lambda timestep: torch.full((int(timestep),), timestep))
    with pytest.raises(LabelError, match="the shape of the denoiser's timestep argument changes"):
        growing.argument(4, 2)
    foreign = Labels(Timetable(tuple(TIMESTEPS)))
    foreign.given(0, torch.tensor(1.0))
    foreign.learn(0, 7.0)
    with pytest.raises(LabelError, match=r"none of scheduler\.timesteps"):
        foreign.argument(1, 0)
    assert foreign.last() is None
