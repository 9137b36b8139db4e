"""What attention gives in one process that computes for all ranks, where these exchange numbers in few bits."""

from dataclasses import dataclass

from torch import Tensor

from asyncdiff.denoiser.attention import AttentionCall
from asyncdiff.plan.key_form import InBits
from asyncdiff.plan.token_layout import Extent, TokenLayout, TokenParts


@dataclass(frozen=True)
class RoundedKeys:
    """Rounds what would travel; see `runtime.fresh_keys`, which this follows site by site.

    Attributes:
        layout, parts: where tokens lie, and how they are divided.
        dealt: the sites at which heads are dealt out.
        form: in which it would travel.
    """

    layout: TokenLayout
    parts: TokenParts
    dealt: frozenset[int]
    form: InBits

    def attend(self, number: int, attention: AttentionCall) -> Tensor:
        """What attention gives for all tokens at a site."""
        site = self.layout.sites[number]
        attention = attention._replace(
            key=self._rounded(attention.key, site.keys), value=self._rounded(attention.value, site.keys)
        )
        if number not in self.dealt or not attention.heads:
            return attention()
        query = self._rounded(attention.query, site.queries or site.keys)
        return self.form.rounded(attention._replace(query=query)())

    def _rounded(self, tensor: Tensor, extent: Extent) -> Tensor:
        """A tensor of all tokens, of which those are rounded that are divided."""
        parts, rounded = self.parts, self.form.rounded(tensor)
        everyone = [parts.of(rounded, extent, part) for part in range(parts.count)]
        return parts.join(parts.cut(tensor, extent, 0), extent, 0, everyone)
