"""Tokens of a text that lie beside the picture's in attention: they can be divided as well.

Every rank then runs its own part of both. Where they are is marked as the picture is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Graph
from asyncdiff.errors import SplitError
from asyncdiff.plan.token_layout import Extent
from asyncdiff.runtime.token_marks import Block, Marked, Marks, mark
from asyncdiff.runtime.units import UnitHooks


@dataclass(frozen=True)
class TextTokens:
    """The tokens of a text.

    Attributes:
        tokens: how many there are.
        marks: of a call in which the text is marked.
        starts: for each length of a sequence of picture and text, where the text begins in it.
        cuts_unmarked: whether what is not marked, but as long as the text, is of its tokens too: rotary embeddings are,
            masks may be.
    """

    tokens: int
    marks: Marks
    starts: Mapping[int, int]
    cuts_unmarked: bool = True

    def with_text(self, extent: Extent | None, given: Marked) -> Extent | None:
        """Where tokens lie in a tensor, given where those of the picture lie.

        Raises:
            SplitError: text and picture lie along different dimensions.
        """
        found = self._extent(extent, given)
        if found is None or extent is None:
            return found or extent
        if found.dim != extent.dim:
            raise SplitError("the text lies along another dimension than the picture")
        return extent._replace(text=found.text)

    def of_rows(self, extent: Extent | None, marked: Block | bool) -> Extent | None:
        """The same of keys or queries."""
        if not isinstance(marked, Block) or marked.length != self.tokens:
            return extent
        return Extent(marked.dim, None, marked.start) if extent is None else extent._replace(text=marked.start)

    def _extent(self, extent: Extent | None, given: Marked) -> Extent | None:
        if given.mark is not False:
            return _of_text(given.extent(self.tokens))
        if extent is not None:
            start = self.starts.get(given.shape[extent.dim])
            return None if start is None else extent._replace(start=None, text=start)
        return _of_text(given.unmarked_extent({self.tokens: 0})) if self.cuts_unmarked else None


def text_of(
    units: UnitHooks,
    graph: Graph,
    call: Call,
    picture: Sequence[Tensor],
    marks: Marks,
    sites: Sequence[int],
    tokens: int,
) -> TextTokens | None:
    """Mark the text of a call, if there is one beside the picture in attention.

    Args:
        picture: what the call is given of the picture.
        marks: of the picture.
        sites: the attentions among all of the picture's tokens.
        tokens: how many these are.
    """
    others = Counter(marks.sites[site].total - tokens for site in sites if marks.sites[site].total > tokens)
    if not others:
        return None
    size, starts = others.most_common(1)[0][0], {}
    for site in sites:
        total, keys = marks.sites[site].total, marks.sites[site].keys
        if total == tokens + size and isinstance(keys, Block) and keys.start in (0, size):
            starts[total] = tokens if keys.start == 0 else 0
    known = {id(tensor) for tensor in picture}
    given = [tensor for tensor in call.tensors if id(tensor) not in known and _may_be_text(tensor, size)]
    if not starts or not given or size == tokens:
        return None
    found = mark(units, graph, call, given)
    return TextTokens(size, found, starts) if len(found.sites) == len(marks.sites) else None


def _of_text(found: Extent | None) -> Extent | None:
    """What was found, as a place of the text's tokens."""
    return None if found is None else found._replace(start=None, text=found.start)


def _may_be_text(tensor: Tensor, size: int) -> bool:
    """Batch, tokens, channels."""
    return tensor.is_floating_point() and tensor.ndim == 3 and tensor.shape[1] == size
