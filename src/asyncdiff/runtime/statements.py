"""What is said of a call, and of the denoiser, so that the ranks can compare it: every leaf of every argument."""

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from asyncdiff.denoiser.weight_form import plain_tensors
from asyncdiff.exchange.agreement import Statement, hashed
from asyncdiff.runtime.labels import Timetable
from asyncdiff.settings import Settings
from asyncdiff.versions import version_of
from asyncdiff.weights.share import Share

_PACKAGES = ("asyncdiff", "torch", "diffusers")
# Each rank may have its own: how it reaches the others, and how long it waits for them.
_OWN_SETTINGS = {"executor", "backend", "timeout", "process_group"}
_SAMPLES = 16  # numbers of a weight
_MEASURES = ("mean", "root mean square", "sum by place")
_PLAIN = (bool, int, str, type(None), torch.dtype, torch.device)


def about_arguments(arguments: Mapping[str, Any]) -> list[Statement]:
    """Every leaf of a call's arguments, by name, however deep.

    Of a tensor of floating-point numbers three numbers stand for all: mean, root mean square, and a sum with signs and
    weights that go with the place; ranks with devices of different makes may differ by rounding. The rest is exact.
    """
    told: list[Statement] = []
    measured: dict[int, Tensor] = {}  # by the statement's place
    for name, value in arguments.items():
        for path, leaf in tree_flatten_with_path(value)[0]:
            title = f"the argument {name + keystr(path)!r}"
            if isinstance(leaf, float):
                told.append(Statement(title, "a number", (leaf,), (abs(leaf),), ("value",)))
            elif not isinstance(leaf, Tensor):
                told.append(Statement(title, repr(leaf) if isinstance(leaf, _PLAIN) else type(leaf).__name__))
            elif leaf.is_floating_point() and leaf.layout == torch.strided and leaf.numel():
                measured[len(told)] = leaf.detach()
                told.append(Statement(title, _form(leaf), measures=_MEASURES))
            else:
                told.append(Statement(title, _exact(leaf), shown=functools.partial(_described, leaf)))
    for place, (mean, size, placed) in zip(measured, _measure(list(measured.values())), strict=True):
        told[place] = told[place]._replace(numbers=(mean, size, placed), scale=(size, size, size))
    return told


def about_settings(settings: Settings) -> Statement:
    """What the user has set, and the versions that it is run with."""
    told = settings.arguments().items()
    parts = [Statement(f"the version of {name}", version_of(name)) for name in _PACKAGES]
    parts += [Statement(f"the setting {name}", repr(value)) for name, value in told if name not in _OWN_SETTINGS]
    text = hashed("\n".join(f"{each.name} {each.exact}" for each in parts))
    return Statement("what the user has set", text, shown=_their_own, parts=lambda: parts)


def about_steps(timetable: Timetable) -> Statement:
    """The steps that a generation is to go through."""
    times = timetable.timesteps
    numbers = (times[0], times[-1], sum(times) / len(times)) if times else ()
    scale = (max(map(abs, times)),) * len(numbers) if times else ()
    text = f"{len(times)} step{'s' * (len(times) != 1)}"
    return Statement("the timetable of the generation", text, numbers, scale, ("the first", "the last", "on average"))


class Fingerprint:
    """Of one denoiser: its modules, their settings (adapters and their scales, too), and its weights.

    Of every weight a few numbers stand for all: training, fusing or loading changes all of them. A quantized one is
    known by the numbers that it is kept in.
    """

    def __init__(self, name: str, denoiser: nn.Module, share: Share | None = None) -> None:
        self._name = name
        self._share = share  # where each rank has a part of the weights only
        self._denoiser = denoiser
        self._structure: Any = None
        self._hash = ""
        self._modules: list[tuple[str, nn.Module]] = []
        self._places: list[Mapping[str, Tensor | None]] = []  # where modules have parameters and buffers
        self._held: list[int] = []  # which memory the samples are views of
        self._samples: list[list[Tensor]] = []  # those of a kind together

    def statements(self, structure: Any) -> list[Statement]:
        """What has to be the same on all ranks now.

        Args:
            structure: what decides how data flows in it (`denoiser.structure`).
        """
        tensors = self._tensors(structure)
        held = list(map(Tensor.data_ptr, tensors))
        if held != self._held:
            self._held = held
            self._samples = _alike(_sample(tensor) for tensor in tensors if _can_be_sampled(tensor))
        of_structure, of_weights = f"the structure of the {self._name!r}", f"the weights of the {self._name!r}"
        return [
            Statement(of_structure, self._hash, shown=_their_own, parts=self._parts),
            Statement(of_weights, self._hash_of_weights(), shown=_their_own, parts=self._each_weight),
        ]

    def _tensors(self, structure: Any) -> list[Tensor]:
        if structure is not self._structure and structure != self._structure:
            self._structure, self._hash = structure, hashed(repr(structure))
            self._modules = list(self._denoiser.named_modules())
            self._places = [
                place for _, module in self._modules for place in (module._parameters, module._buffers) if place
            ]
        if self._share is not None:
            return [_numbers(tensor) for _, tensor in self._share.held_by_all()]
        return [_numbers(tensor) for place in self._places for tensor in place.values() if tensor is not None]

    def _hash_of_weights(self) -> str:
        """Read anew every time: torch does not count what is written to a weight's `.data`."""
        digest = hashlib.sha256()
        for together in self._samples:
            digest.update(torch.cat(together).cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _parts(self) -> Iterator[Statement]:
        for name, kind, is_compiled, settings in self._structure:
            title = f"the module {name or self._name!r}"
            yield Statement(title, f"{kind.__name__}{', compiled' if is_compiled else ''}")
            for key, *values in settings:
                yield Statement(f"{key!r} of {title}", ", ".join(_named(value) for value in values))

    def _each_weight(self) -> Iterator[Statement]:
        named = ((f"{name}.{own}", each) for name, module in self._modules for own, each in _own_tensors(module))
        for name, tensor in named if self._share is None else _sampled(self._share.held_by_all()):
            text = hashlib.sha256(_bytes(_sample(tensor))).hexdigest()[:16]
            title, shown = f"the weight {name!r} of the {self._name!r}", functools.partial(_described_sample, tensor)
            yield Statement(title, f"{_form(tensor)} {text}", shown=shown)


def _named(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _exact(tensor: Tensor) -> str:
    is_readable = tensor.layout == torch.strided and not tensor.is_meta
    return f"{_form(tensor)} {hashlib.sha256(_bytes(tensor)).hexdigest()[:16] if is_readable else ''}"


def _described(tensor: Tensor) -> str:
    """A tensor for the reader of an error."""
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return _form(tensor)
    return f"{_form(tensor)}, mean {float(tensor.float().mean()):.6g}"


def _described_sample(tensor: Tensor) -> str:
    """The same of a weight, of which only a sample is looked at."""
    return f"{_form(tensor)}, mean of a sample {float(_sample(tensor).float().mean()):.6g}"


def _their_own() -> str:
    """For a hash, which says nothing to the reader of an error."""
    return "its own"


def _measure(tensors: Sequence[Tensor]) -> Iterator[tuple[float, float, float]]:
    """Mean, root mean square, and a sum in which every place counts differently; read off each device at once."""
    sums = [_sums(tensor) for tensor in tensors]
    by_device: dict[torch.device, Iterator[list[float]]] = {}
    for device in {each.device for each in sums}:
        together = torch.stack([each for each in sums if each.device == device])
        by_device[device] = iter(together.cpu().tolist())
    for tensor, each in zip(tensors, sums, strict=True):
        whole, norm, placed = next(by_device[each.device])
        root = tensor.numel() ** 0.5
        yield whole / root / root, norm / root, placed / root


def _sums(tensor: Tensor) -> Tensor:
    """Of a tensor's numbers, on its device: the sum, the norm, and a sum with a weight for every place."""
    flat = (tensor.float() if tensor.element_size() < 4 else tensor).flatten()
    # A place's weight is that of its row times that of its column, which are many fewer than the places.
    length = math.isqrt(len(flat))
    whole = len(flat) // length * length
    weights = _weights(whole // length + length, flat.device)
    of_column, of_row = weights[:length], weights[length:]
    placed = ((flat[:whole].view(-1, length) * of_column).sum(1) * of_row).sum()
    if whole < len(flat):
        placed = placed + (flat[whole:] * of_column[: len(flat) - whole]).sum()
    return torch.stack([flat.sum(), torch.linalg.vector_norm(flat), placed]).float()


@functools.lru_cache(maxsize=32)
def _weights(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float32, device=device).sin_()


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for own, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and _can_be_sampled(_numbers(tensor)):
            yield own, _numbers(tensor)


def _sampled(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, _numbers(tensor)) for name, tensor in named if _can_be_sampled(_numbers(tensor)))


def _numbers(weight: Tensor) -> Tensor:
    """Those of a weight, as they are kept: what its library adds to it may change when it is used."""
    return plain_tensors(weight)[0].data


def _can_be_sampled(tensor: Tensor) -> bool:
    is_plain = type(tensor) is Tensor and tensor.layout == torch.strided
    return is_plain and not tensor.is_meta and not tensor.is_quantized and tensor.numel() > 0


def _sample(tensor: Tensor) -> Tensor:
    """A view of some numbers from its middle, the same ones whatever its memory looks like."""
    row = tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
    while row.ndim > 1:
        row = row[len(row) // 2]
    return row[:_SAMPLES]


def _alike(samples: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those of one type on one device together, in the same order on all ranks."""
    found: dict[str, list[Tensor]] = {}
    for sample in samples:
        found.setdefault(f"{sample.dtype} {sample.device}", []).append(sample)
    return [together for _, together in sorted(found.items())]


def _bytes(tensor: Tensor) -> bytes:
    flat = torch.cat((tensor.detach().cpu().flatten(),))  # one number may have a stride of none
    return bytes(flat.view(torch.uint8).numpy().tobytes())
