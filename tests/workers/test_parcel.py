"""What is packed is what is unpacked, and what is no data is refused by its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from PIL import Image
from tqdm import tqdm

from asyncdiff import ConfigurationError, NotANumberError, ProcessError, StoppedError
from asyncdiff.workers.answer import Answer, failure_of, first_failure, raise_failure
from asyncdiff.workers.kinds import Kinds
from asyncdiff.workers.parcel import generators_in, pack, unpack
from asyncdiff.workers.progress import Bar, Events, Telling

NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
PICTURE = Image.fromarray(NOISE[..., :3])

VALUES: list[Any] = [
    None,
    [1, 2.5, float("inf"), True, "ä", (1, [2])],
    {"a": {1: "one"}, "b": ()},
    b"\0\1",
    torch.float16,
    torch.device("cuda", 1),
    np.float32(0.1),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values(value: Any) -> None:
    made = unpack(pack(value))
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.randint(0, 9, shape).to(dtype).requires_grad_(dtype.is_floating_point)
    made = unpack(pack({"a": [value.mT if len(shape) > 1 else value]}))["a"][0]
    assert made.dtype is dtype and not made.requires_grad
    assert torch.equal(made, value.mT if len(shape) > 1 else value)
    assert unpack(pack(value), torch.device("meta")).is_meta


def test_arrays() -> None:
    made = unpack(pack(NOISE.T))
    assert made.dtype == np.uint8 and np.array_equal(made, NOISE.T)
    made[0] = 0  # it is the reader's own


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "F", "CMYK"])
def test_pictures(mode: str) -> None:
    picture = PICTURE.convert(mode)
    made = unpack(pack(picture))
    assert made.mode == mode
    assert np.array_equal(np.asarray(made.convert("RGB")), np.asarray(picture.convert("RGB")))


def test_generators_draw_on_where_they_stood_and_stay_the_same_one() -> None:
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    torch.rand(3, generator=one)
    made = unpack(pack({"generator": [one, other, one]}))["generator"]
    assert made[0] is made[2] and made[0] is not made[1]
    assert generators_in({"generator": [one, other, one]}) == [one, other]
    assert torch.equal(torch.rand(4, generator=made[0]), torch.rand(4, generator=one))


def test_what_a_pipeline_returns() -> None:
    made = unpack(pack(StableDiffusionPipelineOutput([PICTURE], [False])))
    assert type(made) is StableDiffusionPipelineOutput
    assert made.images[0].tobytes() == PICTURE.tobytes() and made.nsfw_content_detected == [False]
    assert unpack(pack(StableDiffusionPipelineOutput([PICTURE], None))).nsfw_content_detected is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"callback": print}, "callback is a function"),
        ({"image": [None, open]}, r"image\[1\] is a function"),
        ({"a": {"b": object()}}, r"a\['b'\] is of type object"),
        ({"a": np.array([object()])}, "a is an array of objects"),
        ({"a": torch.zeros(2, device="meta")}, "a is a tensor without plain numbers"),
        ({"a": torch.eye(2).to_sparse()}, "a is a tensor without plain numbers"),
        ({"a": {1, 2}}, "a is of type set"),
    ],
    ids=["function", "function within", "object", "objects", "without numbers", "sparse", "set"],
)
def test_what_is_no_data(value: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        pack(value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["os.system", "asyncdiff.api.AsyncDiff", "asyncdiff.errors.SplitError", "none.Such"])
def test_nothing_but_records_is_made_by_name(name: str) -> None:
    module, _, kind = name.rpartition(".")
    parcel = pack(Answer()).replace(b'"asyncdiff.workers.answer", "Answer"', f'"{module}", "{kind}"'.encode())
    size = len(parcel) - 8
    with pytest.raises(ConfigurationError, match="comes from another process, and is not known here"):
        unpack(size.to_bytes(8, "little") + parcel[8:])


def test_a_path_is_text() -> None:
    assert unpack(pack(Path("a/b"))) == "a/b"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotANumberError("no number"), NotANumberError),
        (ValueError("no value"), ValueError),
        (KeyError("no key"), KeyError),
        (torch.OutOfMemoryError("no room"), torch.OutOfMemoryError),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "no text"), ProcessError),
        (type("OwnError", (Exception,), {})("own"), ProcessError),
    ],
    ids=repr,
)
def test_errors_are_raised_as_they_were(error: Exception, kind: type[Exception]) -> None:
    failure = unpack(pack(failure_of(3, error)))
    with pytest.raises(Exception) as raised:
        raise_failure(failure)
    assert type(raised.value) is kind
    assert str(error) in str(raised.value)
    assert "on rank 3" in str(raised.value.__cause__) and str(error) in str(raised.value.__cause__)


def test_the_error_that_is_the_reason_of_the_others() -> None:
    stopped, own = failure_of(0, StoppedError("rank 1 says")), failure_of(1, ValueError("own"))
    assert first_failure([stopped, own]) is own
    assert first_failure([stopped]) is stopped


def test_what_a_bar_writes() -> None:
    events = Events()
    telling = Telling(events, Kinds(dict))
    for _ in range(2):
        telling.begin()
        events.begin()
        for _ in range(2):
            with tqdm(total=3, **telling.config()) as bar:
                bar.update(3)
        assert events.end().bars == (Bar(0, 3, 3, (None,) * 3), Bar(1, 3, 3, (None,) * 3))
