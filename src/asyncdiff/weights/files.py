"""A denoiser whose weights lie in safetensors files: each is read when it is known that it is wanted here."""

import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from asyncdiff.denoiser.elsewhere import Unread
from asyncdiff.errors import ModelError
from asyncdiff.model_files import of_variant, variant_in

_SAMPLES = 16
_SAFE = "diffusion_pytorch_model.safetensors"


class WeightFiles:
    """The files in one folder.

    Args:
        folder: holds one safetensors file, or several and an index.
        dtype: the number format that weights are read in.
        single: parts of the names of weights that stay in single precision.
        variant: of which files; those of none where the folder has none of that.

    Raises:
        ModelError: the folder has no weights as safetensors.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype, single: tuple[str, ...] = (), variant: str | None = None
    ) -> None:
        self._dtype = dtype
        self._single = single
        # Apart from each other: what was looked at for a sample is let go with these.
        self._reading: dict[Path, Any] = {}
        self._sampling: dict[Path, Any] = {}
        index, whole = _places(folder, variant)
        if index.is_file():
            names: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._files = {name: folder / file for name, file in names.items()}
        elif whole.is_file():
            with safe_open(whole, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), whole)
        else:
            raise ModelError(f"{folder} has no {whole.name}, so that its weights cannot be read one by one")

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def read(self, name: str) -> Tensor:
        """A weight, in the host's memory."""
        tensor: Tensor = self._opened(self._reading, name).get_tensor(name)
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(format_of(name, self._dtype, self._single))

    def sample(self, name: str) -> Tensor:
        """The first of its numbers."""
        file = self._opened(self._sampling, name)
        first: Tensor = file.get_slice(name)[:1] if file.get_slice(name).get_shape() else file.get_tensor(name)
        return first.flatten()[:_SAMPLES].clone()  # a view would keep the file's memory

    def _opened(self, opened: dict[Path, Any], name: str) -> Any:
        """The file that has a weight. Each file is mapped once, so that its memory counts once."""
        path = self._files[name]
        if path not in opened:
            opened[path] = safe_open(path, framework="pt")
        return opened[path]


def can_be_read_by_parts(folder: Path, variant: str | None = None) -> bool:
    """Whether a folder's weights are safetensors, in the format in which they are computed with."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    has_files = any(path.is_file() for path in _places(folder, variant))
    return has_files and "quantization_config" not in config


def _places(folder: Path, variant: str | None) -> tuple[Path, Path]:
    """Where the index of a folder's weights would be, and the file that has them all."""
    wanted = variant_in(folder, variant)
    return folder / of_variant(f"{_SAFE}.index.json", wanted), folder / of_variant(_SAFE, wanted)


def in_single_precision(kind: Any) -> tuple[str, ...]:
    """Of which a name has one, weights of a model's class stay in single precision."""
    return tuple(getattr(kind, "_keep_in_fp32_modules", None) or ())


def format_of(name: str, dtype: torch.dtype, single: Sequence[str]) -> torch.dtype:
    """The number format of a weight, given its name in the model, and that of the others."""
    return torch.float32 if any(part in name.split(".") for part in single) else dtype


def hollow(kind: Any, folder: Path, dtype: torch.dtype, variant: str | None = None) -> nn.Module:
    """A diffusers model made of its configuration, with weights that are not read yet.

    Args:
        kind: its class.
        folder: holds the configuration, and the weights.
        dtype: the number format of the weights.
        variant: see `WeightFiles`.

    Raises:
        ModelError: the files do not hold all weights, or others.
    """
    single = in_single_precision(kind)
    files = WeightFiles(folder, dtype, single, variant)
    with _default_format(dtype), without_memory():
        model: nn.Module = kind.from_config(kind.load_config(folder))
    for prefix, module in model.named_modules():
        for own, weight in module._parameters.items():
            name = f"{prefix}.{own}" if prefix else own
            if weight is not None:
                if name not in files:
                    raise ModelError(f"{folder} has no weights for {name!r}; save the pipeline anew with its library")
                is_number = weight.is_floating_point()
                format_ = format_of(name, dtype, single) if is_number else weight.dtype
                like = torch.empty(weight.shape, dtype=format_, device="meta")
                module._parameters[own] = Unread.at(
                    like, functools.partial(files.read, name), functools.partial(files.sample, name)
                )
        for own, buffer in module._buffers.items():
            name = f"{prefix}.{own}" if prefix else own
            if buffer is not None and name in files:
                module._buffers[own] = files.read(name)
    return model.eval()


@contextlib.contextmanager
def _default_format(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """While it lasts, parameters of modules that this thread makes have a form, and no memory; buffers are as ever."""
    thread = threading.get_ident()

    def empty(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:
        del module, name
        if weight is None or weight.is_meta or threading.get_ident() != thread:
            return None  # as it is; one that is in two places stays one
        return nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)

    # Torch takes what the hook returns, whatever its annotation says.
    handle = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
