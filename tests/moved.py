"""Counts the bytes that operators go through: what a plan says of it does not depend on the machine."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MAKE_ROOM = {"empty", "empty_like", "empty_strided", "zeros", "_unsafe_view"}


class Moved(TorchDispatchMode):
    """Adds up the bytes that operators read and write which are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in MAKE_ROOM:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            read = [leaf for leaf in read if not any(leaf is other for other in made)]
            self.bytes += sum(tensor.nbytes for tensor in (*made, *read))
        return result
