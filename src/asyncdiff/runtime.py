"""Runs one denoiser by the schedule: what to compute, what to substitute, what to pass on."""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from asyncdiff.clock import Clock
from asyncdiff.denoiser import operations_per_byte
from asyncdiff.errors import ConfigurationError, ExchangeError
from asyncdiff.exchange import Channel, Exchange
from asyncdiff.graph import Edge, Graph, UnitCall
from asyncdiff.hooks import Forward, intercept_forward
from asyncdiff.labels import Labels
from asyncdiff.partition import Partition, plan
from asyncdiff.report import Counts, DenoiserReport
from asyncdiff.routing import Message, messages
from asyncdiff.schedule import Schedule, Step, StepKind, Task, speedup
from asyncdiff.trace import Leaf, record

Signature = tuple[Any, ...]

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")


@dataclass(frozen=True)
class _Division:
    """How a denoiser is divided for inputs of one signature."""

    graph: Graph
    partition: Partition
    schedule: Schedule
    messages: tuple[Message, ...]
    fed: frozenset[Edge]


@dataclass
class _Stream:
    """The consecutive denoiser calls that belong together: one per step."""

    signature: Signature
    labels: Labels
    started: str
    index: int = 0
    last_step: int = 0
    channel: Channel | None = None
    predictions: dict[int, list[Any]] = field(default_factory=dict)
    structure: TreeSpec | None = None


@dataclass
class _Pass:
    """One walk through the denoiser's forward, in full or for one task."""

    division: _Division
    on_unit: Callable[[int, Forward, tuple[Any, ...], dict[str, Any]], Any]
    called: dict[str, int] = field(default_factory=dict)


class DenoiserRuntime:
    """One denoiser of one pipeline, attached."""

    def __init__(
        self,
        name: str,
        denoiser: nn.Module,
        schedule: Schedule,
        split: Sequence[Sequence[str]] | None,
        exchange: Exchange,
        clock: Clock,
    ) -> None:
        self.name = name
        self.counts = Counts()
        self._denoiser = denoiser
        self._schedule = schedule
        self._split = split
        self._exchange = exchange
        self._clock = clock
        self._signature = inspect.signature(denoiser.forward)
        self._timestep_name = next((own for own in _TIMESTEP_NAMES if own in self._signature.parameters), None)
        if self._timestep_name is None:
            raise ConfigurationError(
                f"{type(denoiser).__name__} takes no timestep (none of {', '.join(_TIMESTEP_NAMES)}): it is no denoiser"
            )
        self._divisions: dict[Signature, _Division] = {}
        self._streams: dict[int, _Stream] = {}
        self._calls_in_step = 0
        self._modules: Signature = ()
        self._checked_generation = -1
        self._pass: _Pass | None = None
        self._broken: str | None = None
        self._unit_undo: dict[str, Callable[[], None]] = {}
        self._undo = intercept_forward(denoiser, self._denoise)
        clock.on_generation.append(self._begin_generation)
        clock.on_step.append(self._end_step)

    def detach(self) -> None:
        """Leave the denoiser as it was."""
        self._close_streams()
        self._clock.on_generation.remove(self._begin_generation)
        self._clock.on_step.remove(self._end_step)
        self._unhook_units()
        self._undo()

    def report(self) -> DenoiserReport:
        """What this generation did so far."""
        current = next((stream for stream in self._streams.values() if stream.signature in self._divisions), None)
        divisions = list(self._divisions.values())
        chosen = self._divisions[current.signature] if current else (divisions[-1] if divisions else None)
        counts = replace(self.counts, full=self.counts.full.copy())
        if chosen is None:
            return DenoiserReport(self.name, (), (), (), 0, counts, 1.0)
        units = chosen.graph.units
        return DenoiserReport(
            name=self.name,
            components=tuple(tuple(units[unit].name for unit in sorted(own)) for own in chosen.partition.components),
            shares=chosen.partition.shares,
            live_edges=tuple(
                tuple(f"{units[edge.unit].name} → {edge.leaf}" for edge in sorted(reads))
                for reads in chosen.partition.reads
            ),
            bytes_per_round=sum(chosen.graph.bytes(message.edges) for message in chosen.messages),
            counts=counts,
            modelled_speedup=speedup(chosen.schedule, max(counts.steps, 1), max(chosen.partition.shares)),
        )

    # The pipeline's events

    def _begin_generation(self) -> None:
        self._close_streams()
        self.counts = Counts()
        self._calls_in_step = 0

    def _end_step(self, timestep: Any) -> None:
        self._calls_in_step = 0
        if not self._needs_labels:
            return
        for stream in self._streams.values():
            if stream.last_step == self._clock.steps - 1 and stream.index <= self._schedule.warmup:
                stream.labels.learn(stream.index - 1, timestep)

    # A denoiser call

    def _denoise(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._pass is not None:
            return forward(*args, **kwargs)
        self._clock.check_scheduler()
        self._check_modules()
        stream = self._stream_of_call(args, kwargs)
        schedule = self._schedule
        division = self._divisions.get(stream.signature)
        if division is not None:
            schedule = division.schedule
        stream.labels.given(stream.index, self._bound(args, kwargs)[self._timestep_name or ""])
        step = schedule.step(stream.index, stream.labels.last())
        begin = time.perf_counter()
        try:
            if step.kind is StepKind.FULL:
                self._run_in_full(stream, step, forward, args, kwargs)
                self.counts.full[stream.started] += 1
                self.counts.seconds_full += time.perf_counter() - begin
            elif step.kind is StepKind.ROUND:
                self._run_round(stream, step, forward, args, kwargs)
                self.counts.rounds += 1
                self.counts.seconds_rounds += time.perf_counter() - begin
            else:
                self.counts.stored += 1
        except BaseException:
            self._streams.clear()
            raise
        leaves = stream.predictions[step.prediction]
        stream.index += 1
        if stream.structure is None:
            raise RuntimeError("a prediction was asked for before the first denoiser call")
        return tree_unflatten(list(leaves), stream.structure)

    def _stream_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Stream:
        """Streams are told apart by their place among the calls of a step."""
        key, self._calls_in_step = self._calls_in_step, self._calls_in_step + 1
        signature = self._signature_of(args, kwargs)
        stream = self._streams.get(key)
        now = self._clock.steps
        reason = None
        if stream is None:
            reason = "warm-up" if now == 0 else "new stream"
        elif stream.signature != signature:
            reason = "inputs of another shape"
        elif now != stream.last_step + 1:
            reason = "steps were skipped"
        if reason is not None:
            if stream is not None and stream.channel is not None:
                stream.channel.close()
            stream = self._streams[key] = _Stream(signature, Labels(self._clock.timesteps), reason)
            self._check_agreement(args, kwargs)
        elif stream is None:
            raise RuntimeError("a stream without a reason to start")
        stream.last_step = now
        return stream

    def _run_in_full(
        self, stream: _Stream, step: Step, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        division = self._divisions.get(stream.signature)
        result = None
        if division is None:
            result, division = self._divide(stream.signature, forward, args, kwargs)
        if stream.channel is None:
            stream.channel = self._exchange.open(division.graph, division.messages)
        if step.keeps:
            # Where the very first call is also the last warm-up step, it runs once more: units are
            # only known, and their outputs only kept, after the traced call.
            result = self._walk(division, self._keep_units(division, stream.channel, step.index), forward, args, kwargs)
        elif result is None:
            result = forward(*args, **kwargs)
        leaves, stream.structure = tree_flatten(result)
        sources = {step.index: division.partition.predictor}
        stream.predictions = self._share({step.index: leaves}, sources)

    def _run_round(
        self, stream: _Stream, step: Step, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        division, channel = self._divisions[stream.signature], stream.channel
        if channel is None:
            raise RuntimeError("a round came before the warm-up")
        sources = {task.predicts: task.rank for task in step.tasks if task.predicts is not None}
        results: dict[int, list[Any]] = {}
        self._broken = f"a round of the denoiser {self.name!r} was interrupted"
        channel.start_round()
        for task in step.tasks:
            if task.rank not in self._exchange.ranks:
                continue
            labelled = self._labelled(stream, task.label, args, kwargs)
            on_unit = self._task_units(division, channel, task)
            leaves, stream.structure = tree_flatten(self._walk(division, on_unit, forward, *labelled))
            results[task.rank] = leaves
        channel.end_round(step.index)
        mine = next(iter(results.values()))
        stream.predictions = self._share({at: results.get(rank, mine) for at, rank in sources.items()}, sources)
        self._broken = None

    def _share(self, predictions: dict[int, list[Any]], sources: dict[int, int]) -> dict[int, list[Any]]:
        tensors = {step: [leaf for leaf in leaves if isinstance(leaf, Tensor)] for step, leaves in predictions.items()}
        shared = self._exchange.share(tensors, sources)
        merged = {}
        for step, leaves in predictions.items():
            received = iter(shared[step])
            merged[step] = [next(received) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return merged

    # Units

    def _walk(
        self,
        division: _Division,
        on_unit: Callable[[int, Forward, tuple[Any, ...], dict[str, Any]], Any],
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._pass = _Pass(division, on_unit)
        try:
            return forward(*args, **kwargs)
        finally:
            self._pass = None

    def _on_unit_call(self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        current = self._pass
        if current is None:
            return forward(*args, **kwargs)
        ordinal = current.called.get(name, 0)
        current.called[name] = ordinal + 1
        unit = current.division.graph.index.get((name, ordinal))
        if unit is None:
            return forward(*args, **kwargs)
        return current.on_unit(unit, forward, args, kwargs)

    def _keep_units(self, division: _Division, channel: Channel, version: int) -> Callable[..., Any]:
        """Run every unit and store what any rank of this process will read."""
        schedule = division.schedule
        wanted: dict[int, list[Edge]] = {}
        for edge in frozenset().union(
            *(division.partition.reads[schedule.component_of(rank)] for rank in self._exchange.ranks)
        ):
            wanted.setdefault(edge.unit, []).append(edge)

        def on_unit(unit: int, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = forward(*args, **kwargs)
            leaves = tree_leaves(result) if unit in wanted else []
            for edge in wanted.get(unit, []):
                channel.store.put(edge, version, _kept(division.graph.units[unit], edge, leaves[edge.leaf]))
            return result

        return on_unit

    def _task_units(self, division: _Division, channel: Channel, task: Task) -> Callable[..., Any]:
        """Run the task's own units and pass on what others read; substitute all others."""
        graph, partition = division.graph, division.partition
        own, reads = partition.components[task.component], partition.reads[task.component]

        def on_unit(unit: int, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = graph.units[unit]
            if unit in own or partition.owner(unit) is None:
                self.counts.units_run += 1
                result = forward(*args, **kwargs)
                if task.feeds:
                    for number, leaf in enumerate(tree_leaves(result)):
                        edge = Edge(unit, number)
                        if edge in division.fed:
                            channel.made(task.rank, edge, _kept(call, edge, leaf))
                return result
            self.counts.units_skipped += 1
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            made: dict[int, Any] = {}
            for number, leaf in enumerate(call.outputs):
                origin = call.origins[number]
                edge = Edge(unit, origin)
                if leaf.value is None:
                    made[number] = leaf.constant
                elif leaf.input_index is not None:
                    made[number] = given[leaf.input_index]
                elif origin in made:
                    made[number] = made[origin]
                elif edge in reads:
                    made[number] = _kept(call, edge, channel.store.get(edge, task.reads))
                else:
                    made[number] = _placeholder(leaf, origin in call.overwritten)
            return tree_unflatten(list(made.values()), call.structure)

        return on_unit

    # Divisions

    def _divide(
        self, signature: Signature, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, _Division]:
        """Trace this call and divide the denoiser by what it shows."""
        result, trace = record(self._denoiser, forward, args, kwargs)
        weight = operations_per_byte(self._denoiser)
        graph, partition = plan(trace, self._schedule.components, self._split, weight)
        schedule = replace(self._schedule, predictor=partition.predictor)
        routes = messages(schedule, partition)
        made = _Division(graph, partition, schedule, routes, frozenset().union(*partition.reads))
        self._divisions[signature] = made
        self._hook_units(made)
        return result, made

    def _hook_units(self, division: _Division) -> None:
        for unit in division.graph.units:
            name = unit.name
            if name in self._unit_undo:
                continue

            def intercept(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> Any:
                return self._on_unit_call(name, forward, args, kwargs)

            self._unit_undo[name] = intercept_forward(self._denoiser.get_submodule(name), intercept)

    def _unhook_units(self) -> None:
        for undo in self._unit_undo.values():
            undo()
        self._unit_undo.clear()

    def _check_modules(self) -> None:
        """Adapters and fusions change the module tree between calls: then find the units again."""
        if self._checked_generation == self._clock.generation:
            return
        self._checked_generation = self._clock.generation
        if self._broken is not None:
            raise ExchangeError(
                f"{self._broken}, so messages between the ranks may be outstanding; call disable() and attach again"
            )
        modules = tuple((name, id(module)) for name, module in self._denoiser.named_modules())
        if modules != self._modules:
            self._unhook_units()
            self._divisions.clear()
            self._modules = modules

    # Arguments

    @property
    def _needs_labels(self) -> bool:
        return self._schedule.stride > 1

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return self._signature.bind(*args, **kwargs).arguments

    def _labelled(
        self, stream: _Stream, label: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the label of another step."""
        if label == stream.index:
            return args, kwargs
        bound = self._signature.bind(*args, **kwargs)
        bound.arguments[self._timestep_name or ""] = stream.labels.argument(label, stream.index)
        return bound.args, bound.kwargs

    def _signature_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
        """What of the arguments decides how the denoiser runs: not the values of its tensors."""
        arguments = dict(self._bound(args, kwargs))
        arguments.pop(self._timestep_name or "", None)
        leaves, structure = tree_flatten(arguments)
        return (str(structure), *(_trait(leaf) for leaf in leaves))

    def _check_agreement(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(self._exchange.ranks) > 1:
            return
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        floats = [leaf.detach().double() for leaf in tensors if leaf.is_floating_point() and leaf.numel()]
        if not floats:
            return
        digest = torch.stack([leaf.mean() for leaf in floats] + [leaf.square().mean().sqrt() for leaf in floats])
        scale = digest[len(floats) :].repeat(2)
        self._exchange.check_agreement(digest, scale, f"the inputs of the denoiser {self.name!r}")

    def _close_streams(self) -> None:
        for stream in self._streams.values():
            if stream.channel is not None:
                stream.channel.close()
        self._streams.clear()


def _kept(call: UnitCall, edge: Edge, tensor: Tensor) -> Tensor:
    """The tensor, or a copy where the denoiser writes to it later on."""
    return tensor.clone() if edge.leaf in call.overwritten else tensor


def _placeholder(leaf: Leaf, is_overwritten: bool) -> Tensor:
    """Stands for a tensor that nothing alive depends on: not a number, so that a mistake would show."""
    floating = leaf.dtype is not None and (leaf.dtype.is_floating_point or leaf.dtype.is_complex)
    filler = torch.full((), float("nan") if floating else 0, dtype=leaf.dtype, device=leaf.device)
    expanded = filler.expand(leaf.shape)
    return expanded.clone() if is_overwritten else expanded


def _trait(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    if leaf is None or isinstance(leaf, (bool, int, str)):
        return leaf
    return type(leaf)
