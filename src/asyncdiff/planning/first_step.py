"""Run the first step of a hollow pipeline's own call: what its denoiser is given, and how often it is called."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map, tree_unflatten

from asyncdiff.call import Call, tensors_of
from asyncdiff.denoiser.find import find_denoisers
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.rehearsal import rehearse, result_form
from asyncdiff.denoiser.trace import ModuleCall, Trace
from asyncdiff.errors import AsyncDiffError, ConfigurationError, TraceError
from asyncdiff.hooks import intercept_call, listen
from asyncdiff.launch import call_pipeline
from asyncdiff.request.words import COUNTS

_PROMPT = "a picture"
_STEPS = 4  # asked for; some schedulers refuse to do with less


@dataclass(frozen=True)
class FirstStep:
    """What a pipeline's first step asks of its denoiser.

    Attributes:
        denoiser: the pipeline's name for it.
        trace: the first call.
        calls: how often it is called; more than once where every branch of the guidance is a call of its own.
        pictures: how many pictures (or videos) the pipeline's call makes.
        longer: given how many tokens its text has, the first call with a text twice as long; raises TraceError where
            there is no such text. None where the call was not recorded for a plan.
    """

    denoiser: str
    trace: Trace
    calls: int
    pictures: int
    longer: Callable[[int], Trace] | None = None


class _OverError(BaseException):
    """The first step is over. No pipeline catches it."""


def first_step(pipe: Any, inputs: Mapping[str, Any]) -> FirstStep:
    """Run a hollow pipeline's own call until its first step is over.

    What has weights answers with zeros of the right shape, which are found on shapes alone. The pipeline is of no
    other use afterwards.

    Args:
        inputs: what the pipeline is called with, beside a prompt.

    Raises:
        ConfigurationError: the pipeline cannot be called so.
        TraceError: a denoiser's call cannot be told without its weights.
    """
    denoisers = find_denoisers(pipe)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    watched = _Watched()
    for name, part in parts.items():
        if name in denoisers:
            intercept_call(denoisers[name], functools.partial(watched.denoise, name, denoisers[name]))
            continue
        for module in part.modules():
            intercept_call(module, functools.partial(watched.answer, module))
    listen(pipe.scheduler, "step", _end)
    arguments = call_arguments(pipe, inputs)
    try:
        call_pipeline(pipe, **arguments)
    except _OverError:
        pass
    except AsyncDiffError:
        raise
    except Exception as error:  # whatever a pipeline stumbles over
        raise ConfigurationError(
            f"{type(pipe).__name__} could not be run without its weights: {' '.join(str(error).split())}; if that is "
            "because its call needs more than a prompt, give it from Python: asyncdiff.plan(..., inputs={...})"
        ) from error
    if watched.first is None:
        raise ConfigurationError(f"{type(pipe).__name__} called no denoiser in its first step")
    name, trace, call = watched.first
    longer = functools.partial(_with_longer_text, denoisers[name], call)
    return FirstStep(name, trace, watched.calls, _pictures(arguments), longer)


def call_arguments(pipe: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline is called with: a prompt and few steps, where it takes any, and what is said.

    Args:
        inputs: by name; `batch` stands for so many prompts.

    Raises:
        ConfigurationError: the pipeline takes no such input, or there are two answers to how many prompts there are.
    """
    taken = inspect.signature(pipe.__call__).parameters
    given = dict(inputs)
    batch = given.pop("batch", 1)
    unknown = next(
        (name for name in given if name not in taken), None
    )  # some pipelines pass over what they do not know
    if unknown is not None:
        raise ConfigurationError(f"{type(pipe).__name__} takes no {unknown!r}: leave it out")
    prompts = _prompts(given)
    if batch > 1 and prompts is not None and prompts != batch:
        raise ConfigurationError(f"batch says {batch} prompts, and the inputs have {prompts}: leave batch out")
    if "prompt" in taken:
        is_encoded = any("prompt_embeds" in name for name in given)
        given.setdefault("prompt", None if is_encoded else [_PROMPT] * batch if batch > 1 else _PROMPT)
    elif "batch_size" in taken:
        given.setdefault("batch_size", batch)
    elif batch > 1:
        raise ConfigurationError(
            f"{type(pipe).__name__} takes no prompt, so that its batch is not to be had by --batch"
        )
    if "num_inference_steps" in taken:
        given.setdefault("num_inference_steps", _STEPS)
    return given


def _with_longer_text(denoiser: nn.Module, call: Call, tokens: int) -> Trace:
    """A call with a text twice as long: all that has as many tokens, beside what is denoised.

    Raises:
        TraceError: there is no such text, or it cannot be longer.
    """
    form = CallForm(denoiser)
    picture = {id(tensor) for tensor in tensors_of(form.main(call))}
    is_there = False

    def doubled(leaf: Any) -> Any:
        nonlocal is_there
        if not isinstance(leaf, Tensor) or id(leaf) in picture or leaf.ndim < 2:
            return leaf
        dim = next((dim for dim in (1, 0) if leaf.shape[dim] == tokens), None)
        is_there = is_there or (leaf.ndim == 3 and dim == 1 and leaf.is_floating_point())
        return leaf if dim is None else torch.cat((leaf, leaf), dim)

    longer = call.giving(tree_map(doubled, call.given))
    if not is_there:
        raise TraceError(f"the call has no text of {tokens} tokens")
    return rehearse(denoiser, longer, form.batch(call))


def _prompts(arguments: Mapping[str, Any]) -> int | None:
    """How many prompts a call is given, as words or encoded; None where it says nothing of them."""
    prompt = arguments.get("prompt")
    if prompt is not None:
        return len(prompt) if isinstance(prompt, (list, tuple)) else 1
    encoded = arguments.get("prompt_embeds")
    return None if encoded is None else len(encoded)


def _pictures(arguments: Mapping[str, Any]) -> int:
    """How many pictures a call makes: so many of each prompt."""
    each = next((arguments[name] for name in COUNTS if arguments.get(name) is not None), 1)
    return (_prompts(arguments) or 1) * int(each)


def _end(*args: Any, **kwargs: Any) -> None:
    raise _OverError


class _Watched:
    """Answers in the place of all modules.

    Attributes:
        first: the denoiser that is called first, its recorded call, and the call itself.
        calls: how often it was called.
    """

    def __init__(self) -> None:
        self.first: tuple[str, Trace, Call] | None = None
        self.calls = 0
        self._is_inside = False
        self._known: dict[Any, Trace] = {}

    def denoise(self, name: str, denoiser: nn.Module, call: Call) -> Any:
        """Answer a denoiser's call."""
        form = CallForm(denoiser)
        key = name, form.read(call).signature
        if key not in self._known:
            self._known[key] = rehearse(denoiser, call, form.batch(call))
        trace = self._known[key]
        if self.first is None:
            self.first = name, trace, call
        self.calls += self.first[0] == name
        return _zeros(trace.calls[0])

    def answer(self, module: nn.Module, call: Call) -> Any:
        """Answer the call of another module, if it is not made by one that is being answered."""
        if self._is_inside:
            return call()
        self._is_inside = True
        try:
            # The module is given the very lists of its caller: some keep in them what their next call goes on with.
            result = result_form(module, Call(lambda: call(), (), {}))
            _replace_shapes(call.given)
            return tree_map(_with_zeros, result)
        finally:
            self._is_inside = False


def _replace_shapes(arguments: Any) -> None:
    """Put zeros in the place of what a module has left in its caller's lists, which has a shape only."""
    if isinstance(arguments, (list, tuple, dict)):
        for value in arguments.values() if isinstance(arguments, dict) else arguments:
            _replace_shapes(value)
    if isinstance(arguments, list):
        arguments[:] = map(_with_zeros, arguments)


def _with_zeros(value: Any) -> Any:
    """Zeros in the place of a tensor that has a shape only."""
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, FakeTensor) else value


def _zeros(call: ModuleCall) -> Any:
    """A result of a call's form."""
    leaves = [
        leaf.constant if leaf.dtype is None else torch.zeros(leaf.shape, dtype=leaf.dtype) for leaf in call.outputs
    ]
    if call.structure is None:
        raise TraceError("a module did not return")
    return tree_unflatten(leaves, call.structure)
