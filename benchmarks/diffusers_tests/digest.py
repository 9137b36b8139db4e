"""What a pipeline gave, as a form and a digest that can be compared between processes."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image


class Digest:
    """Of a pipeline's result: pictures, tensors, arrays, and any nesting of them.

    Attributes:
        form: types, shapes and dtypes.
        finite: whether all numbers are.
    """

    def __init__(self, result: Any) -> None:
        self._hash = hashlib.sha256()
        self.finite = True
        self.form = self._add(result)

    @property
    def values(self) -> str:
        """Equal where all numbers are equal bit for bit."""
        return self._hash.hexdigest()[:16]

    def _add(self, value: Any) -> str:
        kind = type(value).__name__
        if isinstance(value, torch.Tensor):
            return self._add_tensor(kind, value)
        if isinstance(value, Image.Image):
            self._hash.update(value.tobytes())
            return f"{kind}({value.mode}, {value.size[0]}x{value.size[1]})"
        if isinstance(value, np.ndarray) and value.dtype != object:
            return self._add_tensor(kind, torch.from_numpy(np.ascontiguousarray(value)))
        if isinstance(value, Mapping):
            return f"{kind}({', '.join(f'{name}: {self._add(inner)}' for name, inner in value.items())})"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value)]
            return f"{kind}({', '.join(f'{name}: {self._add(getattr(value, name))}' for name in fields)})"
        if isinstance(value, (list, tuple, np.ndarray)):
            return f"{kind}[{', '.join(self._add(inner) for inner in value)}]"
        if isinstance(value, float):
            self.finite = self.finite and bool(np.isfinite(value))
        if isinstance(value, (bool, int, float, str, bytes, type(None))):
            self._hash.update(repr(value).encode())
        return kind

    def _add_tensor(self, kind: str, tensor: torch.Tensor) -> str:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point() or tensor.is_complex():
            self.finite = self.finite and bool(torch.isfinite(tensor).all())
        self._hash.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{kind}({str(tensor.dtype).removeprefix('torch.')}, {'x'.join(map(str, tensor.shape))})"
