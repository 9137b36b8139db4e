"""The calls of one denoiser shared out among groups of devices: exact, and outside of all that the groups do inside.

Two ways. Where the batch can be divided, as with both guidance branches in one batch or several pictures for a prompt,
every group computes its part of it, in every call. Else every stream of calls, such as one branch of the guidance,
belongs to one group. That group computes; the others go on at once, with a tensor that waits for the numbers when the
pipeline first reads it. All ranks run the same pipeline, so all wait at the same place, whatever that place is: a
pipeline that calls once in a step, or reads one branch before it asks for the other, comes to the same result, and
only gains nothing. A batch whose parts must overlap is divided only if the step before had no other call.
"""

import functools
import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from asyncdiff.call import Call
from asyncdiff.denoiser.form import batch_size
from asyncdiff.errors import ConfigurationError
from asyncdiff.exchange.protocol import Exchange, SharedLeaves
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.parts import Parts
from asyncdiff.report import GuidanceCounts
from asyncdiff.runtime.advice import advise
from asyncdiff.runtime.batch import (
    FAILURES,
    BatchRule,
    batch_rules,
    has_form_of_part,
    is_same_but_for_rounding,
    join,
)
from asyncdiff.runtime.deferred import Settlement, deferred
from asyncdiff.runtime.denoiser import DenoiserRuntime
from asyncdiff.runtime.lane import is_checked_again
from asyncdiff.runtime.recent import Recent
from asyncdiff.runtime.stream import Arguments, Stream, Streams

# Of so few steps all that is looked at again is the second.
_FEW_STEPS = 3


@dataclass
class _Kind:
    """What is known of calls of one kind.

    Attributes:
        structure, leaves: the form of the result; tensors are on torch's "meta" device, and hold nothing.
        devices: where the result's tensors are.
        rule: how the batch is divided, if it can be.
        reason: why it cannot be.
        due: the steps in which that is looked at again: an attention processor may couple the pictures of a batch from
            some step on.
    """

    structure: TreeSpec
    leaves: tuple[Any, ...]
    devices: tuple[torch.device | None, ...]
    rule: BatchRule | None
    reason: str
    due: list[int]

    def placeholders(self) -> list[Any]:
        """Leaves that are to be filled."""
        return [
            torch.full(leaf.shape, _unfilled(leaf.dtype), dtype=leaf.dtype, device=device) if device else leaf
            for leaf, device in zip(self.leaves, self.devices, strict=True)
        ]


@dataclass(frozen=True)
class _Belonging:
    """Of a stream of whole calls: what its parts are told by, and the group that computes it where it has no parts."""

    stream: Stream
    context: int
    owner: int


@dataclass(frozen=True)
class _Owed:
    """A call's result on its way: the group that has it, and the leaves that it is written to."""

    owner: int
    leaves: list[Any]


class Guidance:
    """Stands before a denoiser's runtime, in the place of which it is given the calls.

    Attributes:
        streams: those of whole calls.
        counts: what was shared out in this generation.
    """

    def __init__(self, runtime: DenoiserRuntime, axis: Exchange, groups: int) -> None:
        """Take over a runtime's calls.

        Args:
            axis: the exchange between the groups; its ranks are those groups that this process computes for.
        """
        self.streams = Streams()
        self.counts = GuidanceCounts(groups)
        self._runtime = runtime
        self._context = runtime.context
        self._clock = runtime.context.clock
        self._axis = axis
        self._groups = groups
        self._kinds: Recent[Hashable, _Kind] = Recent()
        self._belongings: list[_Belonging] = []
        self._contexts = itertools.count()
        self._owed: list[_Owed] = []
        self._settlement = Settlement(self._settle)
        self._generation = -1
        self._step = -1
        self._steps = 0
        self._calls = 0
        self._is_alone = False  # whether the step before had one call
        self._whole_before = 0
        self._warned_of: set[str] = set()
        runtime.outer = self

    def detach(self) -> None:
        """Forget all; the runtime is detached on its own."""
        self.end()

    def __call__(self, call: Call, whole: Arguments) -> Any:
        """The result of a call, shared out among the groups."""
        if self._generation != self._clock.generation:
            self._generation, self._step, self._steps, self._whole_before = self._clock.generation, -1, 0, 0
            self._calls = 0
            self.counts = GuidanceCounts(self._groups)
        try:
            if self._step != self._clock.steps:
                self._begin_step()
            stream, is_new = self.streams.of_call(whole, self._clock.steps, self._clock.timetable)
            if is_new:
                self._belongings.append(self._belonging(stream))
            if is_new or is_checked_again(self._context, stream.index):
                self._context.compare_inputs(call, self._axis)
            kind = self._kinds.of(self._runtime.kind_of_call(whole), functools.partial(self._look, call))
            if kind.rule is not None and kind.due and stream.index >= kind.due[0]:
                self._look_again(kind, kind.rule, call, stream.index)
            belonging = next(known for known in self._belongings if known.stream is stream)
            stream.index += 1
            self._calls += 1
            if kind.rule is not None and (self._is_alone or Parts(kind.rule.batch, self._groups).use == 1):
                return self._compute_in_parts(kind.rule, belonging, call)
            self.counts.reason = self.counts.reason or kind.reason
            return self._compute_by_owner(kind, belonging, call)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """The generation is over, or is broken off."""
        self.streams.forget()
        self._belongings = []
        self._owed = []
        self._settlement.drop()
        self._settlement = Settlement(self._settle)

    def _begin_step(self) -> None:
        """The first call of a step; what the pipeline has not read of the step before is of no use to it."""
        self._settlement.settle()
        if self.counts.whole - self._whole_before > 1:
            self.counts.reason = "the pipeline reads each branch's result before it calls for the next"
        self._step, self._whole_before = self._clock.steps, self.counts.whole
        self._steps += 1
        self._is_alone, self._calls = self._calls == 1, 0
        self._belongings = [known for known in self._belongings if known.stream.last_step >= self._step - 1]
        if self._steps == 3 and not self.counts.is_shared and self.counts.reason not in self._warned_of:
            self._warned_of.add(self.counts.reason)
            advise(
                f"guidance={self._groups}: the calls of the denoiser {self._context.name!r} cannot be shared out among "
                f"the groups of devices, so that one group computes and the others wait: {self.counts.reason}"
            )

    def _belonging(self, stream: Stream) -> _Belonging:
        """A new stream goes to the group that has the fewest."""
        had = [known.owner for known in self._belongings]
        return _Belonging(stream, next(self._contexts), min(range(self._groups), key=had.count))

    def _look(self, call: Call) -> _Kind:
        """Learn from one ordinary call the form of its result, and whether its batch can be divided."""
        whole = self._runtime.whole(call)
        leaves, structure = tree_flatten(whole)
        main = self._context.form.main(call)
        rules = batch_rules(main, call.given)
        reason = f"a batch of {batch_size(main)} cannot be divided by {self._groups}, and a step has no other call"
        found = None
        for number, rule in enumerate(rules):
            failure = self._try(rule, whole, call)
            if failure is None:
                found = rule
                break
            if number == 0:  # the most probable rule
                reason = f"a part of the batch is not computed as in the whole batch: {failure}"
        return _Kind(
            structure,
            tuple(leaf.to("meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves),
            tuple(leaf.device if isinstance(leaf, Tensor) else None for leaf in leaves),
            found,
            reason,
            self._steps_to_look_again(),
        )

    def _steps_to_look_again(self) -> list[int]:
        steps = len(self._clock.timetable.timesteps)
        return sorted({1, *({steps // 2, steps - 1} if steps > _FEW_STEPS else ())})

    def _look_again(self, kind: _Kind, rule: BatchRule, call: Call, step: int) -> None:
        """See whether the batch can be divided still.

        Raises:
            ConfigurationError: not any more, and steps that were divided may have been wrong.
        """
        kind.due.pop(0)
        failure = self._try(rule, self._runtime.whole(call), call)
        if failure is None:
            return
        self._runtime.compare_again()  # weights that are not the same on all ranks look like this, too
        kind.rule = None
        kind.reason = f"a part of the batch is not computed as in the whole batch: {failure}"
        if step > 1:
            raise ConfigurationError(
                f"guidance={self._groups}: in step {step} a part of the batch of the denoiser {self._context.name!r} "
                f"is not computed as in the whole batch ({failure}), as it was before; something, an attention "
                "processor perhaps, lets the pictures of a batch depend on each other from some step on. Call the "
                "pipeline again: the batch is not divided any more; or attach with guidance=1"
            )

    def _try(self, rule: BatchRule, whole: Any, call: Call) -> str | None:
        """Compare the parts' results with the whole call's; returns what is wrong. All ranks come to the same end."""
        what = f"how the batch of the denoiser {self._context.name!r} is divided"
        parts, failure = {}, ""
        try:
            for group in self._axis.ranks:
                parts[group] = self._runtime.whole(self._part(rule, call, group))
            fits = all(has_form_of_part(part, whole, Parts(rule.batch, self._groups)) for part in parts.values())
        except FAILURES as error:
            fits, failure = False, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if not self._all_agree(fits, what):
            return failure or "its result has another form"
        is_same = is_same_but_for_rounding(join(self._gather(parts), rule.batch), whole)
        return None if self._all_agree(is_same, what) else "its numbers are others"

    def _all_agree(self, mine: bool, what: str) -> bool:
        """Whether all ranks of all groups say so."""
        return self._context.exchange.agree(self._axis.agree(mine, what), what)

    def _part(self, rule: BatchRule, call: Call, group: int) -> Call:
        """A group's part of a call."""
        return call.giving(rule.part(call.given, group, self._groups))

    def _compute_in_parts(self, rule: BatchRule, belonging: _Belonging, call: Call) -> Any:
        larger = rule.batch / Parts(rule.batch, self._groups).size
        prospects = [
            self._runtime.begin_part(lane, belonging.context, self._part(rule, call, group))
            for lane, group in enumerate(self._axis.ranks)
        ]
        # A group that computed less than the others would wait for them.
        within = all(prospect.within for prospect in prospects)
        if any(prospect.judged for prospect in prospects):
            within = self._axis.agree(within, f"how far the forecasts of the denoiser {self._context.name!r} are off")
        parts = {
            group: self._runtime.compute_part(lane, prospect, within)
            for lane, (group, prospect) in enumerate(zip(self._axis.ranks, prospects, strict=True))
        }
        self.counts.split += 1
        self.counts.cost += 1 / larger
        return join(self._gather(parts), rule.batch)

    def _gather(self, parts: dict[int, Any]) -> list[Any]:
        """The results of all groups' parts."""
        made: dict[int, list[Any]] = {}
        for group, part in parts.items():
            made[group], structure = tree_flatten(part)
        mine = next(iter(made.values()))
        groups = range(self._groups)
        moment = Moment(results=tuple((group, group) for group in groups))
        shared = SharedLeaves(self._axis, {group: made.get(group, mine) for group in groups}, moment).finish()
        return [tree_unflatten(shared[group], structure) for group in groups]

    def _compute_by_owner(self, kind: _Kind, belonging: _Belonging, call: Call) -> Any:
        if belonging.owner in self._axis.ranks:
            lane = self._axis.ranks.index(belonging.owner)
            prospect = self._runtime.begin_part(lane, belonging.context, call)
            made, _ = tree_flatten(self._runtime.compute_part(lane, prospect, prospect.within))
            # Laid out as on the other groups: whether a pipeline's first look reads numbers must not depend on that.
            leaves = [leaf.contiguous() if isinstance(leaf, Tensor) else leaf for leaf in made]
        else:
            leaves = kind.placeholders()
        if self._settlement.is_settled:
            self._settlement = Settlement(self._settle)
        self._owed.append(_Owed(belonging.owner, leaves))
        return deferred(tree_unflatten(leaves, kind.structure), self._settlement)

    @torch.no_grad()
    def _settle(self) -> None:
        """Exchange the results that are on their way."""
        owed, self._owed = self._owed, []
        if not owed:
            return
        moment = Moment(results=tuple((number, call.owner) for number, call in enumerate(owed)))
        shared = SharedLeaves(self._axis, {number: call.leaves for number, call in enumerate(owed)}, moment).finish()
        for number, call in enumerate(owed):
            if call.owner not in self._axis.ranks:
                for into, leaf in zip(call.leaves, shared[number], strict=True):
                    if isinstance(into, Tensor):
                        into.copy_(leaf)
        owners = [call.owner for call in owed]
        if len(set(owners)) > 1:
            self.counts.deferred += len(owed)
        else:
            self.counts.whole += len(owed)
        self.counts.cost += max(owners.count(owner) for owner in owners)


def _unfilled(dtype: torch.dtype) -> float:
    """What shows that a number was read which was not there."""
    return float("nan") if dtype.is_floating_point or dtype.is_complex else 0
