"""The versions of live edges that a device holds for one stream of denoiser calls."""

from collections.abc import Callable

from torch import Tensor

from asyncdiff.denoiser.graph import Edge


class EdgeStore:
    """The newest versions of every live edge; a version is the step that made it.

    Args:
        depth: how many versions are held.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._versions: dict[Edge, dict[int, Tensor | Callable[[], Tensor]]] = {}

    def put(self, edge: Edge, version: int, tensor: Tensor | Callable[[], Tensor]) -> None:
        """Keep a tensor, or the promise of one that is still on its way; the oldest version may go for it."""
        held = self._versions.setdefault(edge, {})
        held[version] = tensor
        while len(held) > self._depth:
            del held[min(held)]

    def get(self, edge: Edge, version: int) -> Tensor:
        """The tensor of an edge, of the version that the schedule says.

        Raises:
            RuntimeError: that version is not there: schedule and executor disagree.
        """
        held = self._versions.get(edge, {})
        if version not in held:
            raise RuntimeError(f"edge {edge} is there of steps {sorted(held)}, but the schedule reads step {version}")
        tensor = held[version]
        return tensor if isinstance(tensor, Tensor) else tensor()
