"""What a call is going to give, of which not even the shape is known: the call is made when somebody looks at it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class Promise:
    """Stands for a tensor until it is there; whatever is done to it is done to that tensor.

    Torch's functions take it where they take a tensor. It is none, as `isinstance` says too: torch would read memory
    that a tensor has and this has not.

    Args:
        settle: sees to it that the tensor is given to `keep`.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._tensor: Tensor | None = None

    def keep(self, tensor: Tensor) -> None:
        """The tensor is there."""
        self._tensor = tensor

    def kept(self) -> Tensor:
        """The tensor; sees to it that it is there.

        Raises:
            RuntimeError: it will never come, because what was to make it has failed.
        """
        if self._tensor is None:
            self._settle()
        if self._tensor is None:
            raise RuntimeError("what a decoder was to give was read after its decoding had failed")
        return self._tensor

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        plain_args, plain_kwargs = without_promises((tuple(args), dict(kwargs or {})))
        return func(*plain_args, **plain_kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept(), name)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.kept()[index] = without_promises(value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.kept())

    def __len__(self) -> int:
        return len(self.kept())


def without_promises(arguments: Any) -> Any:
    """Arguments or results of any form with the tensors that were promised."""
    return tree_map(lambda leaf: leaf.kept() if isinstance(leaf, Promise) else leaf, arguments)


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: Promise, *others: Any) -> Any:
        return getattr(self.kept(), name)(*without_promises(others))

    return operate


# Operators are looked up on the class, where `__getattr__` does not hear of them.
for _name in (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "radd", "rsub", "rmul", "rtruediv", "rpow"),
    *("rmatmul", "iadd", "isub", "imul", "itruediv", "neg", "abs", "getitem", "bool", "float", "int"),
    *("lt", "le", "gt", "ge"),
):
    setattr(Promise, f"__{_name}__", _operator(f"__{_name}__"))
