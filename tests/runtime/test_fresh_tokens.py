"""Tokens divided with keys that are exchanged in every step: exact, and with bridged steps what one device bridges."""

from typing import Any

import pytest
import torch
from torch import Tensor

from asyncdiff import AsyncDiff, ConfigurationError, Method, SplitError
from asyncdiff.errors import ShapeChangedError
from asyncdiff.plan.method import Bits
from asyncdiff.plan.token_layout import TokenLayout, TokenParts
from asyncdiff.settings import Settings
from tests.processes import run_ranks
from tests.runtime.test_tokens import division_of, divisions_of, emulated
from tests.tiny import PIPELINES, every, run
from tests.tiny.flux import build_flux, tiny_flux_transformer


@pytest.mark.parametrize("name", every("sd3"))
def test_every_step_is_the_plain_pipelines(name: str) -> None:
    """Nothing is held of the others' keys, and nothing but the last step's result is sent later than it is used."""
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain = run(pipe, tiny)
    # Some denoisers of two have three steps only.
    with AsyncDiff(pipe, tokens=2, fresh=True, warmup=1, cooldown=0, executor="local") as async_diff:
        try:
            found = run(pipe, tiny)
        except (SplitError, ShapeChangedError) as error:
            pytest.skip(str(error))
        report = async_diff.report()
    assert torch.equal(found, plain)
    assert "with fresh keys" in str(report)
    for denoiser in report.denoisers:
        assert denoiser.counts.divided == denoiser.counts.steps and not denoiser.counts.rounds
        assert denoiser.held_bytes == 0 and denoiser.bytes_per_round > 0
        assert denoiser.counts.full["with fresh keys"]
        assert 1.0 < denoiser.modelled_speedup <= 2.0


def test_a_part_with_its_text_may_be_as_long_as_all_tokens_are() -> None:
    """Z-Image: 32 of the picture's 64 tokens before 32 of a text are not taken for all 64."""
    tiny, pipe = PIPELINES["z_image"], PIPELINES["z_image"].build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, tokens=2, executor="local") as async_diff:
        assert torch.equal(run(pipe, tiny), plain)
        layout = division_of(async_diff).layout
    (total,) = {site.total for site in layout.sites.values()} - {layout.tokens}
    assert layout.text == 0 and layout.tokens // 2 + total - layout.tokens == layout.tokens == 64


@pytest.mark.parametrize("bridge", [4, 5])
def test_bridged_steps_are_those_of_one_device(bridge: int) -> None:
    """With the paper's method; one part of the tokens has all keys of its own, whatever the step."""
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    settings: dict[str, Any] = dict(warmup=2, method="paper", bridge=bridge, executor="local")
    with AsyncDiff(pipe, tokens=3, fresh=True, **settings) as async_diff:
        found = run(pipe, tiny, num_inference_steps=10)
        division, counts = division_of(async_diff), async_diff.report().denoisers[0].counts
    computed = 2 - (-8 // bridge)
    assert (counts.divided, counts.rounds, counts.bridged) == (computed, 0, 10 - computed)
    plain = run(pipe, tiny, num_inference_steps=10)
    with emulated(getattr(pipe, tiny.denoiser), division.layout, 1, warmup=2, bridge=bridge):
        expected = run(pipe, tiny, num_inference_steps=10)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (found - plain).abs().max() > 100 * (found - expected).abs().max()


def test_a_text_beside_the_picture_is_divided_as_well() -> None:
    """Not where keys are of the steps before: there it costs closeness."""
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    divisions = []
    for fresh in (False, True):
        with AsyncDiff(pipe, tokens=3, fresh=fresh, warmup=2, executor="local") as async_diff:
            run(pipe, tiny, num_inference_steps=3)
            divisions.append(division_of(async_diff))
    (without, with_text), total = divisions, next(iter(divisions[0].layout.sites.values())).total
    assert (without.layout.text, with_text.layout.text) == (0, total - without.layout.tokens)
    assert with_text.share < without.share
    keys, _ = with_text.edges(next(iter(with_text.layout.sites)), 2)
    assert with_text.graph.units[keys.unit].outputs[0].shape[-2] == sum(with_text.parts.sizes(2))


SETTINGS: list[tuple[int, dict[str, Any]]] = [
    (2, {"tokens": 2, "bridge": 4, "max_error": 0.05}),
    (4, {"tokens": 2, "guidance": 2, "bridge": 2}),
    (3, {"tokens": 3}),
    (2, {"tokens": 2, "bridge": 4, "max_error": 0.05, "method": Method(bits=8)}),
]


def _drawn(rank: int, name: str, settings: dict[str, Any]) -> tuple[Tensor, int]:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    with AsyncDiff(pipe, executor="distributed", timeout=60, **settings) as async_diff:
        return run(pipe, tiny), async_diff.report().bytes_sent


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [pytest.param(*layout, marks=() if layout[0] == 2 else pytest.mark.whole) for layout in SETTINGS],
)
def test_processes_give_what_one_process_gives(ranks: int, settings: dict[str, Any]) -> None:
    name, settings = "sd3", {"fresh": True, "warmup": 2, **settings}
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    with AsyncDiff(pipe, executor="local", **settings):
        local = run(pipe, tiny)
    everyone = run_ranks(ranks, _drawn, name, settings)
    for picture, sent in everyone:
        assert torch.equal(picture, everyone[0][0]) and sent > 0
        torch.testing.assert_close(picture, local, rtol=0, atol=1e-3 * float(local.abs().max()))


def _dealt_out(rank: int, settings: dict[str, Any]) -> tuple[Tensor, int, int]:
    """The picture, what was sent for it, and in how many steps; the first one is an ordinary one: it is recorded."""
    tiny = PIPELINES["flux"]
    pipe: Any = build_flux(transformer=tiny_flux_transformer(num_attention_heads=4))
    with AsyncDiff(pipe, fresh=True, timeout=60, **settings) as async_diff:
        found = run(pipe, tiny)
        report = async_diff.report()
    return found, report.bytes_sent, report.denoisers[0].counts.divided - 1


@pytest.mark.parametrize("bits", [None, 8])
def test_heads_are_dealt_out(bits: Bits | None) -> None:
    """From three ranks on less travels so; and it is what the plan counts, beside the results."""
    settings: dict[str, Any] = {"tokens": 3, "warmup": 2, "method": Method(bits=bits)}
    tiny = PIPELINES["flux"]
    pipe: Any = build_flux(transformer=tiny_flux_transformer(num_attention_heads=4))
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, fresh=True, executor="local", **settings) as async_diff:
        local = run(pipe, tiny)
        division = division_of(async_diff)
    assert torch.equal(local, plain) is (bits is None)
    assert division.dealt == division.layout.sites.keys()
    everyone = run_ranks(3, _dealt_out, settings)
    steps = everyone[0][2] + (bits is not None)  # in bits the recorded step is made once more, rounded
    for picture, _, _ in everyone:
        torch.testing.assert_close(picture, local, rtol=0, atol=1e-3 * float(plain.abs().max()))
    results = 2 * division.graph.bytes(division.partition.end.reads)  # each part goes to two others
    assert sum(sent for _, sent, _ in everyone) == steps * (division.bytes_per_round + results)


def test_in_few_bits_the_picture_is_nearly_the_same_whatever_the_number_of_parts() -> None:
    """Keys and values are rounded on every rank alike, so that it does not matter whose they are."""
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    plain, found = run(pipe, tiny), []
    for count in (2, 3):
        with AsyncDiff(pipe, tokens=count, warmup=1, cooldown=0, executor="local", method=Method(bits=8)) as async_diff:
            found.append(run(pipe, tiny))
            assert torch.equal(run(pipe, tiny), found[-1]), "the first one, in which calls are recorded, is like others"
            division = division_of(async_diff)
    assert not division.dealt, "there are two heads, for three ranks"
    assert torch.equal(found[0], found[1])
    assert 0 < (found[0] - plain).norm() < 0.05 * plain.norm()


class Fading:
    """An attention processor that counts its calls, and from the sixth on gives less; it notes them all, too."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls, self.noted = inner, 0, list[int]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self.noted.append(self.calls)
        factor = 0.3 if self.calls > 5 else 1.0
        found = self.inner(*args, **kwargs)
        return tuple(each * factor for each in found) if isinstance(found, tuple) else found * factor


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
@pytest.mark.parametrize("settings", [{}, {"method": Method(bits=8)}, {"fresh": False, "warmup": 99}], ids=str)
def test_processors_that_count_see_the_calls_of_the_generation_alone(settings: dict[str, Any]) -> None:
    """Tokens are found by some calls beside them."""
    tiny = PIPELINES["sd3"]

    def built() -> Any:
        pipe: Any = tiny.build()
        inner = pipe.transformer.attn_processors
        pipe.transformer.set_attn_processor({name: Fading(found) for name, found in inner.items()})
        return pipe

    plain, pipe = run(built(), tiny, num_inference_steps=10), built()
    with AsyncDiff(pipe, tokens=2, executor="local", **settings):
        found = run(pipe, tiny, num_inference_steps=10)
    assert (found - plain).norm() <= (0.01 if "method" in settings else 0.0) * plain.norm()
    counted = [(each.calls, each.noted) for each in pipe.transformer.attn_processors.values()]
    assert counted == [(10, list(range(1, 11)))] * len(counted)


def test_four_bits_are_too_few_for_keys_of_the_step_itself() -> None:
    with pytest.raises(ConfigurationError, match=r"Method\(bits=4\) would leave far off: give bits=8, or fresh=False"):
        AsyncDiff(PIPELINES["flux"].build(), tokens=2, method=Method(bits=4))
    assert not Settings(tokens=2, fresh=False, method=Method(bits=4)).has_fresh_keys


def test_it_is_about_tokens() -> None:
    with pytest.raises(ConfigurationError, match="fresh=True is about the keys and values of tokens; give tokens"):
        AsyncDiff(PIPELINES["flux"].build(), fresh=True, components=2)
    with pytest.raises(ConfigurationError, match="fresh must be True or False"):
        AsyncDiff(PIPELINES["flux"].build(), tokens=2, fresh="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "is_fresh"),
    [
        ({"tokens": 4}, True),
        ({"tokens": 4, "fresh": False}, False),
        ({"tokens": 4, "components": 2}, False),
        ({"tokens": 1}, False),
        ({"components": 2}, False),
    ],
    ids=str,
)
def test_what_is_exact_comes_first(given: dict[str, Any], is_fresh: bool) -> None:
    settings = Settings(**given)
    assert settings.has_fresh_keys is settings.schedule().fresh is is_fresh


def _wherever_there_are_heads(layout: TokenLayout, parts: TokenParts) -> frozenset[int]:
    return frozenset(
        number for number, site in layout.sites.items() if site.queries is not None and site.heads >= parts.count
    )


def _dealt_out_wherever(rank: int, names: list[str], bits: Bits | None) -> list[tuple[str, float, int]]:
    """By name, how far each is from the plain one, or in few bits from what one process draws, relative to its largest
    number, and at how many sites heads went."""
    found = []
    settings: dict[str, Any] = {"tokens": 2, "warmup": 1, "cooldown": 0, "guidance": 1, "method": Method(bits=bits)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenLayout, "dealt", _wherever_there_are_heads)
        for name in names:
            tiny, pipe = PIPELINES[name], PIPELINES[name].build()
            expected = run(pipe, tiny).float()
            try:
                if bits is not None:
                    with AsyncDiff(pipe, executor="local", **settings):
                        expected = run(pipe, tiny).float()
                with AsyncDiff(pipe, timeout=60, **settings) as async_diff:
                    off = (run(pipe, tiny).float() - expected).abs().max() / expected.abs().max()
                    divisions = divisions_of(async_diff)
            except (SplitError, ShapeChangedError):
                continue
            found.append((name, float(off), sum(len(division.dealt) for division in divisions)))
    return found


@pytest.mark.whole
@pytest.mark.parametrize("bits", [None, 8])
def test_heads_dealt_out_on_two_ranks_are_every_pipelines(bits: Bits | None) -> None:
    """Where it gains nothing, with two of them; of all that can be divided, in two processes."""
    everyone = run_ranks(2, _dealt_out_wherever, sorted(PIPELINES), bits, limit=1200)
    dealt = [(name, off) for name, off, sites in everyone[0] if sites]
    assert len(dealt) > 20
    assert {name: off for name, off in dealt if not off < 1e-3} == {}
