"""What is said of a call, and of the denoiser, so that the ranks can compare it: every leaf of every argument."""

import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from asyncdiff.exchange.agreement import Statement, hashed
from asyncdiff.settings import Settings
from asyncdiff.weights.share import Share

_PACKAGES = ("asyncdiff", "torch", "diffusers")
# Each rank may have its own: how it reaches the others, and how long it waits for them.
_OWN_SETTINGS = {"executor", "backend", "timeout", "process_group"}
_SAMPLES = 8  # numbers of each end of a weight
_PLAIN = (bool, int, str, type(None), torch.dtype, torch.device)


def about_arguments(arguments: Mapping[str, Any]) -> list[Statement]:
    """Every leaf of a call's arguments, by name, however deep.

    Of a tensor of floating-point numbers three numbers stand for all: mean, root mean square, and a sum with signs and
    weights that go with the place; ranks with devices of different makes may differ by rounding. The rest is exact.
    """
    named: list[tuple[str, str]] = []
    measured: list[Tensor | None] = []
    for name, value in arguments.items():
        for path, leaf in tree_flatten_with_path(value)[0]:
            title = f"the argument {name + keystr(path)!r}"
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.layout == torch.strided and leaf.numel():
                named.append((title, _form(leaf)))
                measured.append(_measure(leaf.detach()))
            elif isinstance(leaf, float):
                named.append((title, "a number"))
                measured.append(torch.tensor([leaf, abs(leaf), 0.0]))
            else:
                named.append((title, _exact(leaf)))
                measured.append(None)
    numbers = _read([each for each in measured if each is not None])
    statements = []
    for (title, exact), each in zip(named, measured, strict=True):
        if each is None:
            statements.append(Statement(title, exact))
        else:
            mean, size, placed = next(numbers)
            statements.append(Statement(title, exact, (mean, size, placed), (size, size, size)))
    return statements


def about_settings(settings: Settings) -> list[Statement]:
    """What the user has set, and the versions that it is run with."""
    told = settings.arguments().items()
    versions = [Statement(f"the version of {name}", importlib.metadata.version(name)) for name in _PACKAGES]
    return versions + [
        Statement(f"the setting {name}", repr(value)) for name, value in told if name not in _OWN_SETTINGS
    ]


class Fingerprint:
    """Of one denoiser: its modules, their settings (adapters and their scales, too), and its weights.

    Of every weight a few numbers stand for all: training, fusing or loading changes all of them.
    """

    def __init__(self, name: str, denoiser: nn.Module, share: Share | None = None) -> None:
        self._name = name
        self._share = share  # where each rank has a part of the weights only
        self._denoiser = denoiser
        self._structure: Any = None
        self._hash = ""
        self._modules: list[tuple[str, nn.Module]] = []
        self._places: list[Mapping[str, Tensor | None]] = []  # where modules have parameters and buffers
        self._held: list[tuple[int, int]] = []  # which memory the samples are views of
        self._samples: list[Tensor] = []

    def statements(self, structure: Any) -> list[Statement]:
        """What has to be the same on all ranks now.

        Args:
            structure: what decides how data flows in it (`denoiser.structure`).
        """
        if structure is not self._structure and structure != self._structure:
            self._structure, self._hash = structure, hashed(repr(structure))
            self._modules = list(self._denoiser.named_modules())
            self._places = [
                place for _, module in self._modules for place in (module._parameters, module._buffers) if place
            ]
        return [
            Statement(f"the structure of the {self._name!r}", self._hash, parts=self._parts),
            Statement(f"the weights of the {self._name!r}", self._weights(), parts=self._each_weight),
        ]

    def _parts(self) -> Iterator[Statement]:
        for name, kind, is_compiled, settings in self._structure:
            title = f"the module {name or self._name!r}"
            yield Statement(title, f"{kind.__name__}{', compiled' if is_compiled else ''}")
            for key, *values in settings:
                yield Statement(f"{key!r} of {title}", ", ".join(_named(value) for value in values))

    def _weights(self) -> str:
        if self._share is None:
            tensors = [tensor for place in self._places for tensor in place.values() if tensor is not None]
        else:
            tensors = [tensor for _, tensor in self._share.held_by_all()]
        held = [(id(tensor), tensor.data_ptr()) for tensor in tensors]
        if held != self._held:
            self._held = held
            self._samples = [
                sample for tensor in tensors if _can_be_sampled(tensor.data) for sample in _ends(tensor.data)
            ]
        digest = hashlib.sha256()
        for _, together in sorted(_alike(self._samples).items()):
            digest.update(_bytes(torch.cat(together)))
        return digest.hexdigest()[:16]

    def _each_weight(self) -> Iterator[Statement]:
        named = ((f"{name}.{own}", each) for name, module in self._modules for own, each in _own_tensors(module))
        for name, tensor in named if self._share is None else _sampled(self._share.held_by_all()):
            text = hashlib.sha256(b"".join(_bytes(sample) for sample in _ends(tensor))).hexdigest()[:16]
            yield Statement(f"the weight {name!r} of the {self._name!r}", text)


def _named(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _exact(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        is_readable = leaf.layout == torch.strided and not leaf.is_meta
        return f"{_form(leaf)} {hashlib.sha256(_bytes(leaf)).hexdigest()[:16] if is_readable else ''}"
    return repr(leaf) if isinstance(leaf, _PLAIN) else type(leaf).__name__


def _measure(tensor: Tensor) -> Tensor:
    """Mean, root mean square, and a sum in which every place counts differently, shape (3,)."""
    flat = (tensor.float() if tensor.element_size() < 4 else tensor).flatten()
    weights = torch.arange(1, len(flat) + 1, dtype=torch.float32, device=flat.device).sin_()
    size = flat.square().mean().sqrt()
    return torch.stack([flat.mean(), size, (flat * weights).sum() / len(flat) ** 0.5]).float()


def _read(measured: Iterable[Tensor]) -> Iterator[list[float]]:
    """Numbers read off their devices, all at once for each device."""
    every = list(measured)
    by_device: dict[torch.device, Iterator[list[float]]] = {}
    for device in {each.device for each in every}:
        together = torch.stack([each for each in every if each.device == device])
        by_device[device] = iter(together.cpu().tolist())
    return (next(by_device[each.device]) for each in every)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for own, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and _can_be_sampled(tensor.data):
            yield own, tensor.data


def _sampled(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor.data) for name, tensor in named if _can_be_sampled(tensor.data))


def _can_be_sampled(tensor: Tensor) -> bool:
    is_plain = type(tensor) is Tensor and tensor.layout == torch.strided
    return is_plain and not tensor.is_meta and not tensor.is_quantized and tensor.numel() > 0


def _ends(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Views of its first and its last numbers, whatever its memory looks like."""
    first = last = tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
    while first.ndim > 1:
        first, last = first[0], last[-1]
    return first[:_SAMPLES], last[-_SAMPLES:]


def _alike(samples: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for sample in samples:
        found.setdefault(f"{sample.dtype} {sample.device}", []).append(sample)
    return found


def _bytes(tensor: Tensor) -> bytes:
    flat = torch.cat((tensor.detach().cpu().flatten(),))  # one number may have a stride of none
    return bytes(flat.view(torch.uint8).numpy().tobytes())
