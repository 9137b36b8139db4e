"""Decoding shared out among processes: bit for bit what one device makes; what cannot be shared out is left alone."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncdiff import AsyncDiff, ConfigurationError, StoppedError
from asyncdiff.call import Call
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.plan.moments import Moment
from asyncdiff.runtime.decoding import Decoding, find_decoders
from tests.processes import run_ranks
from tests.tiny import PIPELINES
from tests.tiny.adapters import SMALL, build_small_unet
from tests.tiny.base import tiny_vae

# How a VAE is told to go about it, and how many pictures there are.
WAYS = {"tiles": 1, "slices": 3, "tiles of slices": 3, "batch": 3, "picture": 1}
IN_PROCESSES = dict(warmup=9, executor="distributed", timeout=60)
pytestmark = pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")


def build(way: str) -> Any:
    """A pipeline whose pictures do not end where a tile ends."""
    pipe = build_small_unet(vae=tiny_vae(sample_size=12))
    if "tiles" in way:
        pipe.vae.enable_tiling()
    if "slices" in way:
        pipe.vae.enable_slicing()
    return pipe


def draw(pipe: Any, pictures: int, **extra: Any) -> Tensor:
    given = SMALL.inputs(pipe) | {"num_inference_steps": 2, "output_type": "pt"}
    picture: Tensor = pipe(**given | {"num_images_per_prompt": pictures} | extra)[0]
    return picture


class Counted:
    """Counts the calls of a module that are really made."""

    def __init__(self, module: nn.Module) -> None:
        self.calls = 0
        module.register_forward_pre_hook(self._count)

    def since_last_time(self) -> int:
        calls, self.calls = self.calls, 0
        return calls

    def _count(self, *_: Any) -> None:
        self.calls += 1


def _decoded(rank: int, way: str, settings: dict[str, Any]) -> dict[str, Any]:
    pipe, pictures = build(way), WAYS[way]
    before = dict(vars(pipe.vae))
    with AsyncDiff(pipe, **IN_PROCESSES, **settings):
        counted = Counted(pipe.vae.decoder)
        plain, calls = draw(pipe, pictures), [counted.since_last_time()]
    found = []
    with AsyncDiff(pipe, **IN_PROCESSES, **settings, share_decode=True):
        assert vars(pipe.vae) != before
        for _ in range(2):
            found.append(draw(pipe, pictures))
            calls.append(counted.since_last_time())
    assert vars(pipe.vae) == before and "_compiled_call_impl" not in vars(pipe.vae.decoder)
    return {"plain": plain, "found": found, "calls": calls}


def _decodings() -> Iterator[Any]:
    """Calls of the decoder on each rank: plain, in the first picture and in another. All ranks make the first."""
    ways = [
        ("tiles", [16, 9, 8], [16, 8, 8]),
        ("slices", [3, 2, 2], [3, 2, 1]),
        ("tiles of slices", [48, 25, 24], [48, 24, 24]),
        ("picture", [1, 1, 1], [1, 1, 1]),
    ]
    for way, first, second in ways:
        # Tiles of slices are both.
        marks = (pytest.mark.whole,) if way in ("tiles", "slices") else ()
        yield pytest.param(way, first, second, {"components": 2}, id=f"{way}-team", marks=marks)
        # Who shares a decoding out does not depend on how.
        marks = () if way == "tiles" else (pytest.mark.whole,)
        yield pytest.param(way, first, second, {"components": 1, "guidance": 2}, id=f"{way}-groups", marks=marks)


@pytest.mark.parametrize(("way", "first", "second", "settings"), _decodings())
def test_two_processes_make_what_one_makes(
    way: str, first: list[int], second: list[int], settings: dict[str, Any]
) -> None:
    for rank, calls in zip(run_ranks(2, _decoded, way, settings), (first, second), strict=True):
        assert all(torch.equal(found, rank["plain"]) for found in rank["found"])
        assert rank["calls"] == calls


@pytest.mark.whole
def test_three_processes_with_as_many_tiles_as_they_are() -> None:
    ranks = run_ranks(3, _decoded, "tiles", {"components": 3})
    assert all(torch.equal(found, rank["plain"]) for rank in ranks for found in rank["found"])
    assert sum(rank["calls"][-1] for rank in ranks) == 16


def test_a_batch_is_decoded_whole_unless_its_pictures_are_the_same_to_the_last_bit() -> None:
    for rank in run_ranks(2, _decoded, "batch", {"components": 2}):
        assert all(torch.equal(found, rank["plain"]) for found in rank["found"])


def _fails(rank: int) -> list[str]:
    pipe = build("tiles")
    told = []
    with AsyncDiff(pipe, **IN_PROCESSES, components=2, share_decode=True):
        draw(pipe, 1)
        for fail in (_in_the_decoder, _after_the_last_step):
            undo, extra = fail(pipe, rank)
            try:
                draw(pipe, 1, **extra)
            except (StoppedError, MemoryError) as error:
                told.append(f"{type(error).__name__}: {error}")
            undo()
            told.append("" if torch.isfinite(draw(pipe, 1)).all() else "no picture")
    return told


def _in_the_decoder(pipe: Any, rank: int) -> tuple[Callable[[], None], dict[str, Any]]:
    def fail(*_: Any) -> None:
        raise MemoryError("too large a tile")

    return (pipe.vae.decoder.register_forward_pre_hook(fail).remove, {}) if rank else (lambda: None, {})


def _after_the_last_step(pipe: Any, rank: int) -> tuple[Callable[[], None], dict[str, Any]]:
    def fail(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if rank and step == pipe.num_timesteps - 1:
            raise MemoryError("after all steps")
        return given

    return lambda: None, {"callback_on_step_end": fail}


def test_a_rank_that_fails_ends_the_others_waiting() -> None:
    first, second = run_ranks(2, _fails)
    assert [text.split(":")[0] for text in second] == ["MemoryError", "", "MemoryError", ""]
    assert [text.split(":")[0] for text in first] == ["StoppedError", "", "StoppedError", ""]
    assert "too large a tile" in first[0] and "after all steps" in first[2]


def _decodes_alone(rank: int) -> bool:
    pipe = build("tiles")
    latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    plain = pipe.vae.decode(latents, return_dict=False)[0].detach()
    seen = []

    def preview(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if rank:
            seen.append(pipe.vae.decode(latents).sample)
        return given

    with AsyncDiff(pipe, **IN_PROCESSES, components=2, share_decode=True):
        draw(pipe, 1, callback_on_step_end=preview)
        if rank:
            seen.append(pipe.vae.decode(latents).sample.detach())
    return all(torch.equal(each, plain) for each in seen)


def test_one_rank_may_decode_between_generations_and_in_a_callback() -> None:
    assert run_ranks(2, _decodes_alone) == [True, True]


@pytest.mark.parametrize(
    ("name", "batches"),
    # How many tiles are dealt out at a time: in a decoder's first decoding all ranks make the first one. Cosmos' VAE
    # has no tiling, and makes the one call of every decoding on each rank.
    [
        ("sd15", [15, 16]),
        ("flux2", [15, 16]),
        ("sana", [15, 16]),
        ("hunyuan_video", [15, 16, 16, 16]),
        ("ltx", [15, 16]),
        ("ltx2", [15, 16]),
        ("cosmos", []),
    ],
)
def test_tiles_of_pictures_and_videos(name: str, batches: list[int], caplog: pytest.LogCaptureFixture) -> None:
    assert tiles_dealt_out(name) == batches
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wan21", "it is given what it may write into"),
        ("qwen_image", "it is given what it may write into"),
        ("cogvideox", "it does not give one tensor"),
        ("easyanimate", "it keeps something from one call to the next"),
    ],
)
def test_frames_that_need_the_frames_before_are_left_alone(
    name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "asyncdiff"):
        assert tiles_dealt_out(name) == []
    assert reason in caplog.text


def tiles_dealt_out(name: str) -> list[int]:
    """How many calls two ranks deal out at a time, in two decodings of which each is the plain one to the last bit."""
    tiny = PIPELINES[name]
    if tiny.missing():
        pytest.skip(f"diffusers has no {tiny.missing()}")
    part = find_decoders(tiny.build(), {})["vae"]
    part.enable_tiling()
    shrink_tiles(part)
    channels = getattr(part.config, "latent_channels", None) or part.config.z_dim
    is_video = any(isinstance(module, nn.Conv3d) for module in part.modules())
    shape = (1, channels, 5, 20, 20) if is_video else (1, channels, 20, 20)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exchange = Noted(2)
    decode = Decoding("vae", part, exchange, 2).decode
    with torch.no_grad():
        plain = part.decode(latents, return_dict=False)[0]
        for _ in range(2):
            (found,) = decode(Call(part.decode, (latents,), {"return_dict": False}))
            assert torch.equal(found, plain)
    return exchange.shared


def shrink_tiles(part: Any) -> None:
    """Tiles of eight by eight latents, two of which overlap."""
    scale = getattr(part, "spatial_compression_ratio", 2)
    for name in vars(part):
        if name.startswith("tile_") and name.endswith(("size", "height", "width")) and "factor" not in name:
            latents = 6 if "stride" in name else 8
            setattr(part, name, latents if "latent" in name else latents * scale)


class Noted(LocalExchange):
    """Notes how many results are shared at a time; their forms go before them."""

    def __init__(self, ranks: int) -> None:
        super().__init__(ranks)
        self._noted: list[int] = []

    @property
    def shared(self) -> list[int]:
        return self._noted[1::2]

    def share(self, results: Mapping[int, Sequence[Tensor]], moment: Moment, what: str = "") -> Any:
        self._noted.append(len(moment.results))
        return super().share(results, moment, what)


def in_one_process(part: nn.Module) -> Callable[[Call], Any]:
    """What two ranks do, both in this process."""
    return Decoding("vae", part, LocalExchange(2), 2).decode


class Part(nn.Module):
    """Decodes pictures one by one, with a decoder that is in the way of being shared out, in some way."""

    def __init__(self, decoder: nn.Module, argument: Any = None) -> None:
        super().__init__()
        self.decoder, self.argument = decoder, argument

    def decode(self, latents: Tensor) -> Tensor:
        given = () if self.argument is None else (self.argument,)
        return torch.cat([self.decoder(each, *given) for each in latents.split(1)])


class Remembering(nn.Module):
    before: Tensor | None = None

    def forward(self, latents: Tensor) -> Tensor:
        result = latents if self.before is None else latents + self.before
        self.before = latents
        return result


class Drawing(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return latents + torch.rand(1)


class Writing(nn.Module):
    def forward(self, latents: Tensor, before: list[Tensor]) -> Tensor:
        before.append(latents)
        return latents + len(before)


@pytest.mark.parametrize(
    ("build_part", "reason"),
    [
        (lambda: Part(Remembering()), "it keeps something from one call to the next"),
        (lambda: Part(Drawing()), "it draws random numbers"),
        (lambda: Part(Writing(), []), "it is given what it may write into"),
    ],
)
def test_a_decoder_whose_calls_have_an_order_is_left_alone(
    build_part: Callable[[], Part], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    latents = torch.arange(12.0).reshape(3, 4)
    torch.manual_seed(0)
    plain = build_part().decode(latents)
    torch.manual_seed(0)
    part = build_part()
    with caplog.at_level(logging.WARNING, "asyncdiff"):
        assert torch.equal(in_one_process(part)(Call(part.decode, (latents,), {})), plain)
    assert reason in caplog.text


def _of_a_part_of_the_weights(rank: int) -> tuple[bool, int]:
    pipe = build("tiles")
    plain = draw(pipe, 1)
    counted = Counted(pipe.vae.decoder)
    with AsyncDiff(pipe, **IN_PROCESSES, components=2, shard=True, share_decode=True):
        found = draw(pipe, 1)
    return torch.equal(found, plain), counted.calls


def test_where_weights_are_divided_what_decodes_is_on_all_ranks() -> None:
    assert run_ranks(2, _of_a_part_of_the_weights) == [(True, 9), (True, 8)]


def _placed(rank: int) -> str:
    pipe = build("tiles")
    with pytest.raises(ConfigurationError) as refusal:
        AsyncDiff(pipe, **IN_PROCESSES, components=2, shard=True, share_decode=True, place={"vae": 0})
    assert "decode" not in vars(pipe.vae)
    return str(refusal.value)


def test_what_decodes_cannot_be_on_one_rank_alone() -> None:
    for said in run_ranks(2, _placed):
        assert said.startswith("share_decode=True needs the 'vae' on every rank, and place gives it to one")
