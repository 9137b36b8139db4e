"""What of ComfyUI its nodes see, played by its rules: two of its modules, and how it loads, checks and runs nodes.

The rules are those of ComfyUI 0.3.64 for nodes of its first interface (`INPUT_TYPES` and so on).
"""

import contextlib
import importlib.util
import inspect
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"
_PLAIN = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


class InterruptionError(Exception):
    """ComfyUI's `InterruptProcessingException`."""


class RefusalError(Exception):
    """What ComfyUI says of a workflow before it runs it."""


class ComfyUI:
    """A ComfyUI without a picture model, a server or a browser.

    Attributes:
        nodes: the classes, by the names that workflows call them by.
        titles: of the nodes, for people.
        package: the module that was loaded.
        bars: what progress bars were told, as (value, total), since the last run began.
        saved: what nodes that put something out have got, by their number in the workflow.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {"LoadImage": LoadImage, "SaveImage": SaveImage, "PreviewAny": PreviewAny}
        self.titles: dict[str, str] = {}
        self.package: Any = None
        self.bars: list[tuple[int, int]] = []
        self.saved: dict[str, Any] = {}
        self.executed: list[str] = []
        self._is_interrupted = threading.Event()
        self._kept: dict[str, tuple[Any, ...]] = {}

    def modules(self) -> dict[str, ModuleType]:
        """Those that nodes import."""
        comfy, utils, management = map(ModuleType, ("comfy", "comfy.utils", "comfy.model_management"))
        own = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                self.total = self.total if total is None else total
                own.end_if_interrupted()
                own.bars.append((min(value, self.total), self.total))

        utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
        management.throw_exception_if_processing_interrupted = self.end_if_interrupted  # type: ignore[attr-defined]
        comfy.utils, comfy.model_management = utils, management  # type: ignore[attr-defined]
        return {"comfy": comfy, "comfy.utils": utils, "comfy.model_management": management}

    def load(self, folder: Path) -> None:
        """The nodes in a folder of `custom_nodes`."""
        name = str(folder).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec is not None and spec.loader is not None
        self.package = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.package)
        self.nodes |= self.package.NODE_CLASS_MAPPINGS
        self.titles |= self.package.NODE_DISPLAY_NAME_MAPPINGS

    def interrupt(self) -> None:
        """Somebody presses "cancel"."""
        self._is_interrupted.set()

    def end_if_interrupted(self) -> None:
        if self._is_interrupted.is_set():
            self._is_interrupted.clear()
            raise InterruptionError

    def run(self, workflow: Mapping[str, Any]) -> None:
        """A workflow in the format of ComfyUI's API.

        Raises:
            RefusalError: it cannot be run.
        """
        self._is_interrupted.clear()
        self.bars, self.executed = [], []
        self._run = _Run(self, workflow)
        ends = [
            number for number, node in workflow.items() if getattr(self.nodes[node["class_type"]], "OUTPUT_NODE", 0)
        ]
        if not ends:
            raise RefusalError("Prompt has no outputs")
        for number in ends:
            self._run.validate(number)
        kept = {signature: outputs for signature, outputs in self._kept.items() if signature in self._run.signatures()}
        self._kept = kept
        for number in ends:
            self._outputs(number)

    def outputs(self) -> list[tuple[Any, ...]]:
        """What the nodes of the last run have put out."""
        return [*self._kept.values()]

    def _outputs(self, number: str) -> tuple[Any, ...]:
        signature = self._run.signature(number)
        if signature not in self._kept:
            inputs = {
                name: self._outputs(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in self._run.inputs(number).items()
            }
            self.end_if_interrupted()
            self.executed.append(self._run.workflow[number]["class_type"])
            node = self._run.kind(number)
            got = getattr(node(), node.FUNCTION)(**inputs)
            if getattr(node, "OUTPUT_NODE", False):
                self.saved[number] = got
                got = ()
            _check_outputs(node, got)
            self._kept[signature] = got
        return self._kept[signature]


class _Run:
    """One workflow, on its way."""

    def __init__(self, comfyui: ComfyUI, workflow: Mapping[str, Any]) -> None:
        self.workflow = workflow
        self._nodes = comfyui.nodes
        self._inputs: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, Any] = {}

    def kind(self, number: str) -> Any:
        return self._nodes[self.workflow[number]["class_type"]]

    def inputs(self, number: str) -> dict[str, Any]:
        """As they were checked: what is written in the workflow, of the widgets' types."""
        return self._inputs[number]

    def validate(self, number: str) -> None:
        """Whether a node, and all that it needs, can be run."""
        if number in self._inputs:
            return
        node, given = self.kind(number), self.workflow[number]["inputs"]
        types = node.INPUT_TYPES()
        told = _arguments(getattr(node, "VALIDATE_INPUTS", None))
        own = self._inputs[number] = {}
        for name, (kind, options) in _widgets(types).items():
            if name not in given:
                if name in types["required"]:
                    raise RefusalError(f"Required input is missing: {name}")
            elif isinstance(given[name], list):
                source, place = own[name] = given[name]
                if self.kind(source).RETURN_TYPES[place] != kind and kind != "*":
                    raise RefusalError(f"Return type mismatch between linked nodes: {name}")
                self.validate(source)
            else:
                own[name] = _converted(name, kind, {} if name in told else options, given[name])
        if told:
            constants = {name: None if isinstance(value, list) else value for name, value in own.items()}
            found = node.VALIDATE_INPUTS(**{name: value for name, value in constants.items() if name in told})
            if found is not True:
                raise RefusalError(found)

    def signature(self, number: str) -> str:
        """The same for what gives the same outputs."""
        inputs = {
            name: (self.signature(value[0]), value[1]) if isinstance(value, list) else value
            for name, value in sorted(self._inputs[number].items())
        }
        return f"{self.workflow[number]['class_type']} {inputs} {self._is_changed(number)}"

    def signatures(self) -> set[str]:
        return {self.signature(number) for number in self._inputs}

    def _is_changed(self, number: str) -> Any:
        node = self.kind(number)
        if number not in self._changed and hasattr(node, "IS_CHANGED"):
            own = self._inputs[number].items()
            try:
                constants = {name: None if isinstance(value, list) else value for name, value in own}
                self._changed[number] = node.IS_CHANGED(**constants)
            except Exception:  # noqa: BLE001 (as ComfyUI does)
                self._changed[number] = f"changed {time.monotonic_ns()}"
        return self._changed.get(number)


def _widgets(types: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    inputs = {**types["required"], **types.get("optional", {})}
    return {name: (told[0], told[1] if len(told) > 1 else {}) for name, told in inputs.items()}


def _arguments(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters) if function else []


def _converted(name: str, kind: Any, options: Mapping[str, Any], value: Any) -> Any:
    try:
        value = _PLAIN[kind](value) if isinstance(kind, str) and kind in _PLAIN else value
    except (TypeError, ValueError) as error:
        raise RefusalError(f"Failed to convert an input value to a {kind} value: {name}") from error
    if value < options.get("min", value):
        raise RefusalError(f"Value {value} smaller than min of {options['min']}: {name}")
    if value > options.get("max", value):
        raise RefusalError(f"Value {value} bigger than max of {options['max']}: {name}")
    if isinstance(kind, list) and value not in kind:
        raise RefusalError(f"Value not in list: {name}: {value!r} not in {kind}")
    return value


def _check_outputs(node: Any, outputs: Any) -> None:
    assert isinstance(outputs, tuple) and len(outputs) == len(node.RETURN_TYPES)
    for kind, output in zip(node.RETURN_TYPES, outputs, strict=True):
        assert kind not in _PLAIN or isinstance(output, _PLAIN[kind])
        if kind == "IMAGE":
            assert output.dtype == torch.float32 and output.dim() == 4 and output.shape[-1] == 3
            assert output.min() >= 0 and output.max() <= 1


class Saved(NamedTuple):
    """Pictures as they come to be files: their pixels."""

    pixels: list[bytes]
    width: int
    height: int


class SaveImage:
    """As ComfyUI saves pictures, but for the file."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save(self, images: torch.Tensor, filename_prefix: str) -> Saved:
        rows = [np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8) for image in images]
        return Saved([row.tobytes() for row in rows], images.shape[2], images.shape[1])


class LoadImage:
    """Gives a picture and its mask, both of noise."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0})}}

    def load(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = np.random.default_rng(seed).integers(0, 256, (4, 8, 4), dtype=np.uint8)
        rows = torch.from_numpy(noise.astype(np.float32) / 255.0)[None]
        return rows[..., :3], rows[..., 3]


class PreviewAny:
    """Shows a text."""

    RETURN_TYPES = ()
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    def show(self, source: Any) -> str:
        return str(source)


@contextlib.contextmanager
def loaded(folder: Path = FOLDER) -> Iterator[ComfyUI]:
    """A ComfyUI that has this folder in `custom_nodes`; nothing of it stays."""
    own = ComfyUI()
    with pytest.MonkeyPatch.context() as patch:
        for name, module in own.modules().items():
            patch.setitem(sys.modules, name, module)
        before = {*sys.modules}
        own.load(folder)
        yield own
    for name in {*sys.modules} - before:
        if name.startswith(own.package.__name__):
            del sys.modules[name]


def workflow(address: str, settings: Mapping[str, Any] | None = None, **sampler: Any) -> dict[str, Any]:
    """One that draws, by its number: 1 is the service, 2 the settings, 3 the sampler, 4 saves, 5 shows the text."""
    widgets = {
        "prompt": "one",
        "negative_prompt": "",
        "seed": 0,
        "steps": 0,
        "guidance_scale": -1.0,
        "width": 0,
        "height": 0,
        "batch_size": 1,
    }
    own: dict[str, Any] = {
        "1": {"class_type": "AsyncDiffService", "inputs": {"address": address}},
        "3": {"class_type": "AsyncDiffSampler", "inputs": {"service": ["1", 0], **widgets, **sampler}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }
    if settings is not None:
        own["2"] = {"class_type": "AsyncDiffSettings", "inputs": dict(settings)}
        own["3"]["inputs"]["settings"] = ["2", 0]
    return own
