"""One buffer of live edges in several versions: the newest, what is arriving, and how neighbouring versions differ."""

import torch
from torch import Tensor

from asyncdiff.plan.forecast import Fit, Formula, fitted_weights
from asyncdiff.plan.storage import Rows, Span, Storage

_SMALLEST = 1e-30
_ELEMENTS_AT_ONCE = 2**22  # of a buffer, where something of all versions is computed: what that takes is not held long
_LARGEST_TABLE = 2**24  # numbers; sums over rows are a matrix product up to this size, so as to be the same every time


class VersionedBuffer:
    """The versions of one flat buffer.

    The inner products of the differences, row by row, are found once for each version, and only if a formula asks.

    Args:
        storage: the layout of all buffers.
        dtype: which of them this is.
        depth: how many versions are held.
        device: where.

    Attributes:
        newest: the newest version, shape (elements,).
        arriving: where the next one is put.
    """

    def __init__(self, storage: Storage, dtype: torch.dtype, depth: int, device: torch.device) -> None:
        self._storage, self._dtype, self._device = storage, dtype, device
        size = storage.sizes[dtype]
        self.newest = torch.zeros(size, dtype=dtype, device=device)
        self.arriving = torch.zeros(size, dtype=dtype, device=device)
        self._differences = torch.zeros(depth - 1 if dtype.is_floating_point else 0, size, dtype=dtype, device=device)
        self._slots: list[int] = []  # where the differences lie, that of the newest version first
        self._unknown: list[int] = []  # those of them whose inner products are not known yet
        self._is_empty = True
        self._rows: Rows | None = None
        self._sums: Tensor | None = None
        self._products: Tensor | None = None
        self._weights: tuple[Fit, Tensor] | None = None

    @property
    def bytes(self) -> int:
        """The memory that the versions take."""
        return self.newest.nbytes + self.arriving.nbytes + self._differences.nbytes

    def take_over(self) -> None:
        """What has arrived is the newest version now."""
        slot = self._next_slot()
        if slot is not None:
            torch.sub(self.arriving, self.newest, out=self._differences[slot])
        self.newest, self.arriving = self.arriving, self.newest
        self._is_empty = False

    def repeat(self) -> None:
        """The newest version is that of one step more."""
        slot = self._next_slot()
        if slot is not None:
            self._differences[slot].zero_()

    def forecast(self, by: Formula, span: Span) -> Tensor:
        """What a part of the buffer is expected to be; the newest version itself where nothing is added to it."""
        return self._moved(self.newest, 0, by, span)

    def errors(self, by: Formula) -> Tensor:
        """|F − F̂|² / |F|² of every row of the newest version, with F̂ forecast from the versions before it."""
        before = self.newest - self._differences[self._slots[0]]
        expected = self._moved(before, 1, by, Span(self._dtype, 0, len(self.newest)))
        difference = (self.newest.float() - expected.float()).square()
        off = self._by_row(difference.unsqueeze(0))
        return (off / self._by_row(self.newest.float().square().unsqueeze(0)).clamp_min(_SMALLEST)).squeeze(0)

    def _next_slot(self) -> int | None:
        """Where the next difference goes, which is the newest from now on; None for the very first version."""
        self._weights = None
        if self._is_empty or not len(self._differences):
            return None
        slot = len(self._slots) if len(self._slots) < len(self._differences) else self._slots.pop()
        self._slots.insert(0, slot)
        self._unknown = [*(other for other in self._unknown if other != slot), slot]
        return slot

    def _moved(self, version: Tensor, first: int, by: Formula, span: Span) -> Tensor:
        """A version moved by weighted differences, of which `first` is the newest."""
        start = version[span.start : span.stop]
        if by.line == 0:
            return start
        part = self._differences[:, span.start : span.stop]
        if by.fit is None:
            return torch.add(start, part[self._slots[first]], alpha=by.line)
        rows = self._known_rows()
        if self._weights is None or self._weights[0] is not by.fit:
            spread = by.fit.spread(self._slots[first:], len(self._differences))
            self._weights = by.fit, fitted_weights(spread, self._known_products()).to(self._dtype)
        of_block = rows.of_block[span.start // rows.block : span.stop // rows.block]
        weights = self._weights[1].index_select(0, of_block).unsqueeze(1)
        blocks = part.view(len(part), -1, rows.block).transpose(0, 1)
        return torch.baddbmm(start.view(-1, 1, rows.block), weights, blocks).view(-1)

    def _known_products(self) -> Tensor:
        """The inner products of the differences as they lie, shape (differences, differences, rows)."""
        rows, count = self._known_rows(), len(self._differences)
        if self._products is None:
            self._products = torch.zeros(count, count, rows.total, dtype=_exact(self._device), device=self._device)
        for slot in self._unknown:
            found = self._products_with(self._differences[slot])
            self._products[slot] = found
            self._products[:, slot] = found
        self._unknown = []
        return self._products

    def _products_with(self, difference: Tensor) -> Tensor:
        """Its inner products with all differences, row by row; a part of the buffer after the other."""
        rows, exact = self._known_rows(), _exact(self._device)
        step = max(_ELEMENTS_AT_ONCE // rows.block, 1) * rows.block
        sums = []
        for start in range(0, len(difference), step):
            part = difference[start : start + step]
            exactly = part.float() if part.element_size() < 4 else part
            products = self._differences[:, start : start + step] * exactly
            sums.append(products.view(len(products), -1, rows.block).sum(-1, dtype=exact))
        blocks = sums[0] if len(sums) == 1 else torch.cat(sums, dim=-1)
        return self._of_rows(blocks.nan_to_num(0.0, 0.0, 0.0))  # what is no number must not reach the other rows

    def _known_rows(self) -> Rows:
        if self._rows is None:
            found = self._storage.rows(self._dtype)
            self._rows = found._replace(of_block=found.of_block.to(self._device))
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
