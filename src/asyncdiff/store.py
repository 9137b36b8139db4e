"""The versions of live edges that a device holds for one stream of denoiser calls."""

from collections.abc import Callable

from torch import Tensor

from asyncdiff.graph import Edge


class EdgeStore:
    """The newest version of every live edge; a version is the step that made it."""

    def __init__(self) -> None:
        self._versions: dict[Edge, tuple[int, Tensor | Callable[[], Tensor]]] = {}

    def put(self, edge: Edge, version: int, tensor: Tensor | Callable[[], Tensor]) -> None:
        """Keep a tensor, or the promise of one that is still on its way, in place of the older version."""
        self._versions[edge] = (version, tensor)

    def get(self, edge: Edge, version: int) -> Tensor:
        """The tensor of an edge, which must be of the version that the schedule says.

        Raises:
            RuntimeError: another version is there: schedule and executor disagree.
        """
        held, tensor = self._versions[edge]
        if held != version:
            raise RuntimeError(f"edge {edge} is of step {held}, but the schedule reads step {version}")
        return tensor if isinstance(tensor, Tensor) else tensor()
