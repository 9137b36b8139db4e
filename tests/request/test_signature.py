"""What a pipeline can be called with is known from its own signature."""

from typing import Any

import pytest
from diffusers import DDIMPipeline, FluxPipeline, StableDiffusionPipeline

from asyncdiff import ConfigurationError
from asyncdiff.plain import from_text, to_text
from asyncdiff.request.signature import Signature


def signature(kind: type) -> Signature:
    return Signature.of(object.__new__(kind))


class Demanding:
    def __call__(self, image: Any, /, prompt: str, *, strength: float, steps: int = 3) -> None: ...


def test_arguments_get_their_names() -> None:
    found = signature(FluxPipeline).call(["a fox"], {"num_inference_steps": 3, "height": 64})
    assert list(found.items()) == [("prompt", "a fox"), ("height", 64), ("num_inference_steps", 3)]
    demanding = Signature.of(Demanding())
    assert from_text(Signature, to_text(demanding)) == demanding
    assert demanding.call([1, "a"], {"strength": 0.5}) == {"image": 1, "prompt": "a", "strength": 0.5}


@pytest.mark.parametrize(
    ("kind", "args", "kwargs", "sentence"),
    [
        (FluxPipeline, (), {"promt": "a"}, "FluxPipeline takes no 'promt'; is 'prompt' meant?"),
        (DDIMPipeline, (), {"zzz": "a"}, "DDIMPipeline takes no 'zzz'; it takes batch_size, generator, eta"),
        (FluxPipeline, ("a",), {"prompt": "a"}, "FluxPipeline is given 'prompt' twice"),
        (Demanding, (1, "a", 0.5), {}, "Demanding takes 2 arguments without their names, not 3"),
        (Demanding, (1,), {"strength": 0.5}, "Demanding needs 'prompt'"),
        (Demanding, (1, "a"), {}, "Demanding needs 'strength'"),
    ],
    ids=str,
)
def test_what_it_does_not_take(kind: type, args: tuple[Any, ...], kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        signature(kind).call(args, kwargs)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_a_pipeline_that_takes_anything() -> None:
    """As diffusers' older pipelines do, for arguments of the past."""
    assert signature(StableDiffusionPipeline).call([], {"callback_steps": 1}) == {"callback_steps": 1}
