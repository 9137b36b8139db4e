"""Where a denoiser's call can be divided by tokens: found by marking the picture in it, and tried.

What the marks let expect is tried: one part's tokens, with the keys that the ordinary call makes of the others, must
become what they are in the ordinary call.
"""

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from asyncdiff.call import Call, tensors_of
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.graph import Graph
from asyncdiff.denoiser.trace import Trace
from asyncdiff.errors import SplitError
from asyncdiff.plan.token_layout import Extent, Site, TokenLayout
from asyncdiff.runtime.token_marks import Block, Marked, Marks, mark
from asyncdiff.runtime.token_text import TextTokens, text_of
from asyncdiff.runtime.token_trial import Trial
from asyncdiff.runtime.units import UnitHooks

logger = logging.getLogger(__name__)

# Of so many tensors, or streams of tensors, it is tried whether those that are as long as all tokens are none.
_MOST_DOUBTFUL = 3
# With the text divided as well so many layouts are tried.
_MOST_TRIALS_OF_TEXT = 6
# A call of which less than this share is spent on tokens of the picture is not worth dividing so.
_LEAST_SHARE = 0.5


class _Choice(NamedTuple):
    """What the marks leave open.

    Attributes:
        last: the unit after which all ranks have all tokens again.
        left_out: values that are as long as all tokens, and none.
        cuts_arguments: whether tensors that the denoiser is given, and that its glue reads, are of tokens as well.
        surprises: what of it is not to be expected.
    """

    last: int
    left_out: frozenset[int]
    cuts_arguments: bool
    surprises: int


class _Doubt(NamedTuple):
    """Values that are not marked, but as long as all tokens: they are tokens all together, or none of them is.

    Attributes:
        values: one that several units read, such as rotary embeddings; or those of one shape that one unit reads each,
            such as a text that goes from block to block.
        is_likely: whether they lie where tokens lie usually, and not where channels do.
        readers: how many units read them.
    """

    values: frozenset[int]
    is_likely: bool
    readers: int


@dataclass(frozen=True)
class _Found:
    """What the marks say for sure: the number of tokens, the sites among all attentions, and how sequences lie."""

    tokens: int
    sites: tuple[int, ...]
    first: int
    last_site: int
    starts: dict[int, int]


class FoundTokens(NamedTuple):
    """Where a call can be divided by tokens.

    Attributes:
        layout: the places.
        divided: a record of the call with one part's tokens.
        trial: by which that was made.
    """

    layout: TokenLayout
    divided: Trace
    trial: Trial


class TokenFinder:
    """Finds the token layout of one denoiser.

    Args:
        denoiser: the module.
        units: the hooks on its units, those of the graph among them.
        form: how it is called.
        trace: a recorded call.
        graph: the units of that call.
        is_bridged: whether steps are bridged from where the tokens are joined again. That is best right after the last
            attention: what comes then is computed in every step. Else it is as late as can be.
        divides_text: whether a text beside the picture in attention is divided as well, if it can be. With keys of the
            steps before that costs closeness; with fresh ones nothing.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        units: UnitHooks,
        form: CallForm,
        trace: Trace,
        graph: Graph,
        is_bridged: bool = False,
        divides_text: bool = False,
    ) -> None:
        self._denoiser = denoiser
        self._units = units
        self._form = form
        self._trace = trace
        self._graph = graph
        self._is_bridged = is_bridged
        self._divides_text = divides_text

    def find(self, call: Call, count: int, tried: Sequence[int] = ()) -> FoundTokens:
        """The layout for a call like the recorded one.

        Args:
            count: in how many parts the tokens are divided.
            tried: the parts that are tried; by default the last one, which is no smaller than the others.

        Raises:
            SplitError: it cannot be divided so; says why.
        """
        try:
            return self._find(call, count, tried or (count - 1,))
        except SplitError as error:
            raise SplitError(f"the denoiser cannot be divided by tokens: {error}") from error

    def _find(self, call: Call, count: int, tried: Sequence[int]) -> FoundTokens:
        if any(made.is_compiled for made in self._trace.calls):
            raise SplitError("it is compiled, which hides its attention; use components, or do not compile it")
        marks = mark(self._units, self._graph, call, tensors_of(self._form.main(call)))
        found = self._sites(marks)
        if found.tokens < count:
            raise SplitError(f"the picture has {found.tokens} tokens, too few for tokens={count}")
        choices = self._choices(marks, found)
        layouts = [self._layout(marks, found, choice) for choice in choices]
        self._check_worth(layouts[0])
        trial = Trial(self._denoiser, self._units, layouts[0], call)
        reasons = []
        for layout in layouts:
            try:
                divided = [trial.run(layout, layout.parts(count), part) for part in tried]
            except SplitError as error:
                reasons.append(error)
                continue
            for with_text in self._with_text(call, marks, found, choices) if self._divides_text else ():
                if with_text.text < count:
                    break
                try:
                    divided = [trial.run(with_text, with_text.parts(count), part) for part in tried]
                    return FoundTokens(with_text, divided[-1], trial)
                except SplitError as error:
                    logger.debug("the text is not divided: %s", error)
            return FoundTokens(layout, divided[-1], trial)
        raise reasons[0]

    def _with_text(self, call: Call, marks: Marks, found: _Found, choices: Sequence[_Choice]) -> list[TokenLayout]:
        """Some layouts in which the text is divided as well, the likeliest first; none where its place is not clear."""
        picture = tensors_of(self._form.main(call))
        text = text_of(self._units, self._graph, call, picture, marks, found.sites, found.tokens)
        layouts: list[TokenLayout] = []
        if text is None:
            return layouts
        for cuts_unmarked, choice in itertools.product((True, False), choices):
            with contextlib.suppress(SplitError):
                layout = self._layout(marks, found, choice, replace(text, cuts_unmarked=cuts_unmarked))
                if layout not in layouts:
                    layouts.append(layout)
            if len(layouts) == _MOST_TRIALS_OF_TEXT:
                break
        return layouts

    def _sites(self, marks: Marks) -> _Found:
        """The attentions among all tokens of the picture."""
        lengths = Counter(site.keys.length for site in marks.sites if isinstance(site.keys, Block))
        if not lengths:
            raise SplitError(
                "no attention among the picture's tokens was found (linear attention, and what is no attention at all, "
                "mixes tokens in other ways)"
            )
        tokens = lengths.most_common(1)[0][0]
        starts = {tokens: 0}
        inside = {}
        for number, site in enumerate(marks.sites):
            if not isinstance(site.keys, Block) or site.keys.length != tokens:
                continue
            if site.unit is None:
                raise SplitError("it calls attention outside of its units")
            inside[number] = site.unit
            starts.setdefault(site.total, site.keys.start)
        first, last = min(inside.values()), max(inside.values())
        for number, site in enumerate(marks.sites):
            is_between = site.unit is not None and first <= site.unit <= last
            if is_between and number not in inside and site.keys is not False:
                raise SplitError(
                    f"{self._graph.units[site.unit or 0].name!r} has attention among other groups of tokens than the "
                    f"{tokens} of the picture (windows, frames, or several sizes)"
                )
        return _Found(tokens, tuple(inside), first, last, starts)

    def _choices(self, marks: Marks, found: _Found) -> list[_Choice]:
        """All that fits the marks, the likeliest first."""
        latest = self._last_of_tokens(marks, found)
        ends = dict.fromkeys([found.last_site, latest] if self._is_bridged else [latest, found.last_site])
        doubts = self._doubts(marks, found)
        choices = []
        takings = itertools.product((True, False), repeat=len(doubts))
        for end, cuts, taken in itertools.product(ends, (False, True), takings):
            untaken = [doubt.values for doubt, is_taken in zip(doubts, taken, strict=True) if not is_taken]
            surprises = sum(doubt.is_likely is not is_taken for doubt, is_taken in zip(doubts, taken, strict=True))
            choices.append(_Choice(end, frozenset[int]().union(*untaken), cuts, surprises + cuts))
        return sorted(choices, key=lambda choice: choice.surprises)

    def _last_of_tokens(self, marks: Marks, found: _Found) -> int:
        """The last unit that gives a tensor of the picture's tokens."""
        last = found.last_site
        for unit in range(last + 1, len(self._graph.units)):
            if not any(output.extent(found.tokens) for output in marks.outputs[unit]):
                break
            last = unit
        return last

    def _doubts(self, marks: Marks, found: _Found) -> list[_Doubt]:
        """What is not marked, but as long as all tokens together; what most units read first."""
        readers: Counter[int] = Counter()
        doubtful: dict[int, Marked] = {}
        for unit in range(found.first, found.last_site + 1):
            values = self._trace.calls[self._graph.units[unit].call].inputs
            for value, given in zip(values, marks.inputs[unit], strict=False):
                if given.unmarked_extent(found.starts) is not None:
                    readers[value] += 1
                    doubtful[value] = given
        together: dict[Any, list[int]] = {}
        for value, given in doubtful.items():
            together.setdefault(value if readers[value] > 1 else given.shape, []).append(value)
        doubts = [
            _Doubt(
                frozenset(values),
                not doubtful[values[0]].lies_along_channels(found.starts),
                sum(readers[value] for value in values),
            )
            for values in together.values()
        ]
        return sorted(doubts, key=lambda doubt: -doubt.readers)[:_MOST_DOUBTFUL]

    def _layout(self, marks: Marks, found: _Found, choice: _Choice, text: TextTokens | None = None) -> TokenLayout:
        """Where tokens lie by a choice: those of the picture, and those of a text that is to be divided as well.

        Raises:
            SplitError: the text cannot be divided so.
        """
        inputs = {}
        for unit in range(found.first, choice.last + 1):
            values = self._trace.calls[self._graph.units[unit].call].inputs
            inputs[unit] = {
                place: extent
                for place, given in enumerate(marks.inputs[unit])
                if (extent := given.extent(found.tokens) or given.unmarked_extent(found.starts)) is not None
                and not (given.mark is False and place < len(values) and values[place] in choice.left_out)
            }
        arguments = {
            place: extent
            for place, given in enumerate(marks.arguments)
            if choice.cuts_arguments and len(given.shape) > 2
            if (extent := given.unmarked_extent(found.starts)) is not None
        }
        made = {
            unit: {
                leaf: extent
                for leaf, output in enumerate(marks.outputs[unit])
                if (extent := output.extent(found.tokens)) is not None
            }
            for unit in range(found.first, choice.last + 1)
        }
        if text is not None:
            inputs = {
                unit: _text_added(text, extents, text.marks.inputs[unit], marks.inputs[unit])
                for unit, extents in inputs.items()
            }
            made = {
                unit: _text_added(text, extents, text.marks.outputs[unit], marks.outputs[unit])
                for unit, extents in made.items()
            }
        sites, queries, attentions = {}, {}, list[int]()
        for marked, site in enumerate(marks.sites):
            if site.unit is None or not found.first <= site.unit <= choice.last:
                continue
            number, keys, asked = len(attentions), _rows(site.keys, found.tokens), _rows(site.queries, found.tokens)
            attentions.append(site.unit)
            if text is not None:
                its = text.marks.sites[marked]
                asked = text.of_rows(asked, its.queries)
                if marked in found.sites:
                    keys = text.of_rows(keys, its.keys)
                elif its.keys is not False:
                    raise SplitError("there is attention to the text alone")
            if marked in found.sites and keys is not None:
                sites[number] = Site(site.unit, keys, asked, site.total, site.forms, site.rows, site.heads)
            elif asked is not None:
                queries[number] = asked
        if text is not None and not any(site.keys.text is not None for site in sites.values()):
            raise SplitError("the text is not marked in attention")
        return TokenLayout(
            self._graph,
            found.tokens,
            found.first,
            choice.last,
            arguments,
            inputs,
            made,
            sites,
            queries,
            tuple(attentions),
            0 if text is None else text.tokens,
        )

    def _check_worth(self, layout: TokenLayout) -> None:
        inside = sum(unit.time for unit in self._graph.units[layout.first : layout.last_site + 1])
        share = inside / self._graph.time
        if share < _LEAST_SHARE:
            raise SplitError(
                f"{share:.0%} of a call is spent between its attentions among the picture's {layout.tokens} tokens; "
                "use components"
            )


def _rows(marked: Block | bool, tokens: int) -> Extent | None:
    """Where the picture's tokens lie in keys or queries, if all of them do."""
    return Extent(marked.dim, marked.start) if isinstance(marked, Block) and marked.length == tokens else None


def _text_added(
    text: TextTokens, extents: Mapping[int, Extent], marked: Sequence[Marked], of_picture: Sequence[Marked]
) -> dict[int, Extent]:
    """Where tokens lie in some tensors, those of the text added."""
    found = {}
    for place, (given, beside) in enumerate(zip(marked, of_picture, strict=True)):
        extent = extents.get(place)
        # What is of the picture and not cut, or not all of it, is none of the text's.
        added = text.with_text(extent, given) if extent is not None or beside.mark is False else None
        if added is not None:
            found[place] = added
    return found
