"""One buffer of live edges in several versions: the newest, what is arriving, and how neighbouring versions differ."""

import torch
from torch import Tensor

from asyncdiff.exchange.versions import ELEMENTS_AT_ONCE, PackedVersions, Versions, WholeVersions
from asyncdiff.plan.forecast import Fit, Formula, fitted_weights
from asyncdiff.plan.packing import Packing
from asyncdiff.plan.storage import Rows, Span, Storage

_SMALLEST = 1e-30
_LARGEST_TABLE = 2**24  # numbers; sums over rows are a matrix product up to this size, so as to be the same every time


class VersionedBuffer:
    """The versions of one flat buffer, and what they let expect.

    The inner products of the differences, row by row, are found once for each version, and only if a formula asks.

    Args:
        storage: the layout of all buffers.
        dtype: which of them this is.
        depth: how many versions are held.
        device: where.
        packing: of differences that are packed; None where they are not.
    """

    def __init__(
        self, storage: Storage, dtype: torch.dtype, depth: int, device: torch.device, packing: Packing | None = None
    ) -> None:
        self._storage, self._dtype, self._device = storage, dtype, device
        size = storage.sizes[dtype]
        self.held: Versions = (
            WholeVersions(size, dtype, depth, device)
            if packing is None
            else PackedVersions(size, dtype, depth, device, packing)
        )
        self._slots: list[int] = []  # where the differences lie, that of the newest version first
        self._unknown: list[int] = []  # those of them whose inner products are not known yet
        self._is_empty = True
        self._rows: Rows | None = None
        self._sums: Tensor | None = None
        self._products: Tensor | None = None
        self._weights: tuple[Fit, Tensor] | None = None

    def take_over(self) -> None:
        """What has arrived is the newest version now."""
        self.held.take_over(self._next_slot())
        self._is_empty = False

    def repeat(self) -> None:
        """The newest version is that of one step more."""
        slot = self._next_slot()
        if slot is not None:
            self.held.repeat(slot)

    def forecast(self, by: Formula, span: Span) -> Tensor:
        """What a part of the buffer is expected to be; the newest version itself where nothing is added to it."""
        return self._moved(self.held.newest, 0, by, span)

    def errors(self, by: Formula) -> Tensor:
        """|F − F̂|² / |F|² of every row of the newest version, with F̂ forecast from the versions before it."""
        newest = self.held.newest
        before = newest - self.held.difference(self._slots[0], 0, len(newest))
        expected = self._moved(before, 1, by, Span(self._dtype, 0, len(newest)))
        difference = (newest.float() - expected.float()).square()
        off = self._by_row(difference.unsqueeze(0))
        return (off / self._by_row(newest.float().square().unsqueeze(0)).clamp_min(_SMALLEST)).squeeze(0)

    def _next_slot(self) -> int | None:
        """Where the next difference goes, which is the newest from now on; None for the very first version."""
        self._weights = None
        if self._is_empty or not self.held.count:
            return None
        slot = len(self._slots) if len(self._slots) < self.held.count else self._slots.pop()
        self._slots.insert(0, slot)
        self._unknown = [*(other for other in self._unknown if other != slot), slot]
        return slot

    def _moved(self, version: Tensor, first: int, by: Formula, span: Span) -> Tensor:
        """A version moved by weighted differences, of which `first` is the newest."""
        if by.line == 0:
            return version[span.start : span.stop]
        weights = None if by.fit is None else self._known_weights(by.fit, first)
        step = span.stop - span.start if self.held.at_once is None else self._blocks_of(self.held.at_once)
        made = [
            self._moved_at_once(version, first, by.line, weights, start, min(start + step, span.stop))
            for start in range(span.start, span.stop, step)
        ]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _moved_at_once(
        self, version: Tensor, first: int, line: float, weights: Tensor | None, start: int, stop: int
    ) -> Tensor:
        """The same of a part that is not too large; by the weights of every row, or along the line."""
        old = version[start:stop]
        if weights is None:
            return torch.add(old, self.held.difference(self._slots[first], start, stop), alpha=line)
        rows, part = self._known_rows(), self.held.differences(start, stop)
        of_block = rows.of_block[start // rows.block : stop // rows.block]
        of_each = weights.index_select(0, of_block).unsqueeze(1)
        blocks = part.view(len(part), -1, rows.block).transpose(0, 1)
        return torch.baddbmm(old.view(-1, 1, rows.block), of_each, blocks).view(-1)

    def _known_weights(self, fit: Fit, first: int) -> Tensor:
        """Of the differences as they lie, of which `first` is the newest, shape (rows, differences)."""
        if self._weights is None or self._weights[0] is not fit:
            spread = fit.spread(self._slots[first:], self.held.count)
            self._weights = fit, fitted_weights(spread, self._known_products()).to(self._dtype)
        return self._weights[1]

    def _known_products(self) -> Tensor:
        """The inner products of the differences as they lie, shape (differences, differences, rows)."""
        rows, count = self._known_rows(), self.held.count
        if self._products is None:
            self._products = torch.zeros(count, count, rows.total, dtype=_exact(self._device), device=self._device)
        for slot in self._unknown:
            found = self._products_with(slot)
            self._products[slot] = found
            self._products[:, slot] = found
        self._unknown = []
        return self._products

    def _products_with(self, slot: int) -> Tensor:
        """The inner products of a difference with all of them, row by row; a part of the buffer after the other."""
        rows, exact, size = self._known_rows(), _exact(self._device), len(self.held.newest)
        step, sums = self._blocks_of(ELEMENTS_AT_ONCE), []
        for start in range(0, size, step):
            differences = self.held.differences(start, min(start + step, size))
            part = differences[slot]
            exactly = part.float() if part.element_size() < 4 else part
            products = differences * exactly
            sums.append(products.view(len(products), -1, rows.block).sum(-1, dtype=exact))
        blocks = sums[0] if len(sums) == 1 else torch.cat(sums, dim=-1)
        return self._of_rows(blocks.nan_to_num(0.0, 0.0, 0.0))  # what is no number must not reach the other rows

    def _blocks_of(self, elements: int) -> int:
        """About so many elements: whole blocks of rows."""
        block = self._known_rows().block
        return max(elements // block, 1) * block

    def _known_rows(self) -> Rows:
        if self._rows is None:
            found = self._storage.rows(self._dtype)
            # The host does not wait for the device: memory that is not pinned is read before this returns.
            self._rows = found._replace(of_block=found.of_block.to(self._device, non_blocking=True))
        return self._rows

    def _by_row(self, numbers: Tensor) -> Tensor:
        """Sums over every row, shape (…, elements) to (…, rows)."""
        rows = self._known_rows()
        return self._of_rows(numbers.view(len(numbers), -1, rows.block).sum(-1, dtype=_exact(self._device)))

    def _of_rows(self, blocks: Tensor) -> Tensor:
        """Sums of rows, from those of their blocks, shape (…, blocks) to (…, rows)."""
        rows = self._known_rows()
        if blocks.shape[-1] * rows.total > _LARGEST_TABLE:
            return blocks.new_zeros(len(blocks), rows.total).index_add_(1, rows.of_block, blocks)
        if self._sums is None:
            self._sums = torch.zeros(blocks.shape[-1], rows.total, dtype=blocks.dtype, device=self._device)
            self._sums[torch.arange(blocks.shape[-1], device=self._device), rows.of_block] = 1
        return blocks @ self._sums


def _exact(device: torch.device) -> torch.dtype:
    """The number format of sums: not every device has double precision; Apple's GPUs have not."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
