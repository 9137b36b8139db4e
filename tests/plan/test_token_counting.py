"""Tokens that are counted, against the division that a run finds, and against such as were worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from asyncdiff import AsyncDiff, SplitError
from asyncdiff.denoiser.rates import CPU
from asyncdiff.plan.token_counting import _growth, count_tokens, why_not
from asyncdiff.planning.first_step import FirstStep, first_step
from tests.plan.joint import OPERATIONS_ALONE, TEXT, TOKENS, WIDTH, Joint, traces
from tests.runtime.test_tokens import division_of
from tests.tiny import PIPELINES, run
from tests.tiny.base import PIXELS


def test_by_hand() -> None:
    """Of the picture's 16 tokens a device has 8, beside 3 of text: so many queries of 19 keys, so many rows."""
    counted = count_tokens(traces(Joint(), TOKENS, 2 * TOKENS, 3 * TOKENS), OPERATIONS_ALONE)
    assert counted.layout.tokens == TOKENS
    assert [site.total for site in counted.layout.sites.values()] == [TEXT + TOKENS] * 2
    assert [site.unit for site in counted.layout.sites.values()] == [counted.layout.first, counted.layout.last]

    def block(rows: int) -> float:
        attention = 4 * WIDTH * rows * (TEXT + TOKENS) + 100 * rows * (TEXT + TOKENS)
        return 2 * rows * WIDTH * WIDTH + attention

    assert counted.share(1) == pytest.approx(1.0)
    with_text = count_tokens(
        traces(Joint(), TOKENS, 2 * TOKENS, 3 * TOKENS),
        OPERATIONS_ALONE,
        lambda text: traces(Joint(), TOKENS, text=2)[0],
    )
    assert with_text.share(2) == counted.share(2) and with_text.layout.text == 0
    with_text = with_text.with_text
    assert with_text is not None and with_text.layout.text == TEXT
    assert with_text.share(2) == pytest.approx(0.5), "half of all queries and rows"
    assert counted.share(2) == pytest.approx(block(TEXT + TOKENS // 2) / block(TEXT + TOKENS))


def test_what_cannot_be_divided_is_refused_with_its_reason() -> None:
    with pytest.raises(SplitError, match="convolutions between"):
        count_tokens(traces(Joint(3), TOKENS, 2 * TOKENS, 3 * TOKENS), CPU)
    assert why_not(traces(Joint(3), TOKENS)[0]) == "there are convolutions between its attentions"
    assert why_not(traces(Joint(1), TOKENS)[0]) is None, "a convolution of one place is a projection"
    with pytest.raises(SplitError, match="the same for pictures of other sizes"):
        count_tokens(traces(Joint(), TOKENS, TOKENS, 2 * TOKENS), CPU)


class Windows(nn.Module):
    """Attention in windows of four tokens, and among all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        attention = nn.functional.scaled_dot_product_attention
        for block in self.blocks:
            states = block(sample).unsqueeze(1)
            states = attention(states, states, states)
            windows = states.unflatten(2, (-1, 4)).flatten(0, 2).unsqueeze(1)
            sample = attention(windows, windows, windows).reshape(sample.shape)
        return sample


def test_windows_are_refused() -> None:
    with pytest.raises(SplitError, match="other groups of tokens"):
        count_tokens(traces(Windows(), TOKENS, 2 * TOKENS, 3 * TOKENS), CPU)


@given(
    numbers=st.tuples(*[st.floats(0, 1e6)] * 3),
    sizes=st.tuples(st.floats(1.25, 2), st.floats(2.5, 4)),
)
def test_a_growth_goes_through_what_was_seen(numbers: tuple[float, float, float], sizes: tuple[float, float]) -> None:
    a, b, g = numbers
    at = (1.0, *sizes)
    found = _growth(at, [a + b * x + g * x * x for x in at])
    assert found[:3] == pytest.approx(numbers, rel=1e-6, abs=1e-3)


SMALLER = (PIXELS, PIXELS // 2), (PIXELS // 2, PIXELS // 2)
LARGER = (PIXELS, 2 * PIXELS), (2 * PIXELS, 2 * PIXELS)


@pytest.mark.parametrize(
    "name",
    [
        "sd3",
        *(
            pytest.param(name, marks=pytest.mark.whole)
            for name in ("flux", "pixart", "cogview4", "aura_flow", "wan21", "hunyuan_video")
        ),
    ],
)
def test_it_is_the_division_of_a_run(name: str) -> None:
    """Number of tokens, sites and what they hold; the share that one device computes to a few hundredths."""
    tiny = PIPELINES[name]
    pipe = tiny.build()

    def at(*size: int) -> FirstStep:
        other = tiny.build()
        return first_step(other, {**tiny.inputs(other), **dict(zip(("height", "width"), size, strict=False))})

    sizes = LARGER if name in ("wan21", "hunyuan_video") else SMALLER
    step = at()
    counted = count_tokens([step.trace, *(at(*size).trace for size in sizes)], CPU, step.longer)
    for fresh in (False, True):
        with AsyncDiff(pipe, tokens=2, fresh=fresh, warmup=1, executor="local") as async_diff:
            run(pipe, tiny)
            division = division_of(async_diff)
        found, own = division.layout, (counted.with_text or counted) if fresh else counted
        assert (own.layout.tokens, own.layout.text) == (found.tokens, found.text)
        assert [(site.unit, site.total) for site in own.layout.sites.values()] == [
            (site.unit, site.total) for site in found.sites.values()
        ]
        assert sum(leaf.bytes for site in own.layout.sites.values() for leaf in site.forms) == sum(
            leaf.bytes for site in found.sites.values() for leaf in site.forms
        )
        assert own.share(2) == pytest.approx(division.partition.shares[1], abs=0.04)
