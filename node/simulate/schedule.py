"""A schedule decided beforehand: who stays here, and when each is handed to the engine; everybody else leaves at once.

Those who stay are handed to the engine by deadline, which is by arrival, as every budget is equally long,
but one for which there is no room in the KV cache may be overtaken by those for which there is:

 1. so many prompt tokens at a time that a step stays short (what arrives during a long one waits for all of it);
 2. only where all in the engine, run to their ends, fit the KV cache, so that next to nothing is preempted;
 3. at most one more than `max_sequences`.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from node.routing.policy import Policy
from node.routing.profile import EngineProfile
from node.routing.values import Decision, Features, Reason, Snapshot, Target
from node.simulate.engine import Sequence as EngineSequence
from node.simulate.engine import SimulatedEngine
from node.simulate.replay import Promise
from node.simulate.values import TraceRequest

_STEP_SHARES = (0.05, 0.1, 0.2)  # of the budget: how long a step full of prompts may take
_APART_S = 1e-3  # between two hand-overs, so that their order is theirs alone; the least `Admission` lets one wait
_MOST_OVERTAKEN = 16


@dataclass(frozen=True, slots=True)
class HindsightPolicy(Policy):
    """Those in `hand_over_s`, by index into the trace, are handed to the engine then; the others leave at once."""

    hand_over_s: Mapping[int, float]

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """Where it was decided beforehand. Looks at nothing but the time."""
        at_s = self.hand_over_s.get(int(features.request_id))
        if at_s is None and features.may_leave and snapshot.cloud:
            return Decision(target=Target.CLOUD, reason=Reason.PREDICTED_LATE, cloud=snapshot.cloud[0])
        if at_s is None or now_s >= at_s:
            reason = Reason.WITHIN_BUDGET if features.may_leave else Reason.PINNED
            return Decision(target=Target.LOCAL, reason=reason)
        return Decision(target=Target.WAIT, reason=Reason.NO_SLOT, leave_at_s=at_s)


def step_token_choices(profile: EngineProfile, promise: Promise) -> list[int]:
    """Prompt tokens a step may hold, for the shares of the budget it may take."""
    per_token_s = profile.step.per_prefill_token_s
    most = profile.max_batched_tokens
    if per_token_s <= 0:
        return [most]
    return sorted({min(most, max(1, int(share * promise.ttft_budget_s / per_token_s))) for share in _STEP_SHARES})


class ForkableEngine(SimulatedEngine):
    """An engine that can be copied, and that knows how much of the KV cache will be used."""

    def fork(self) -> ForkableEngine:
        """A copy that goes on by itself."""
        other = copy.copy(self)
        copies: dict[int, EngineSequence] = {}

        def of(sequence: EngineSequence) -> EngineSequence:
            found = copies.get(id(sequence))
            if found is None:
                found = copies[id(sequence)] = copy.copy(sequence)
            return found

        other._waiting = deque(map(of, self._waiting))
        other._prefilling = list(map(of, self._prefilling))
        other._decoding = {owner: of(sequence) for owner, sequence in self._decoding.items()}
        other._ends = [(end, owner, of(sequence)) for end, owner, sequence in self._ends if not sequence.gone]
        heapq.heapify(other._ends)
        other._chunks = [(of(sequence), tokens) for sequence, tokens in self._chunks]
        if self._step is not None:
            other._step = copy.copy(self._step)
            other._step.began, other._step.finished = [], []
        return other

    @property
    def next_prefill_tokens(self) -> int:
        """Prompt tokens to compute that are not in the step under way."""
        return self.prefill_left_tokens - (self._step.prefill_tokens if self._step else 0)

    @property
    def first_step_ends_s(self) -> float:
        """When the step under way ends, of several equal ones the first."""
        return self._began_s + self._step.seconds if self._step else math.inf

    def decodes(self, owner: int) -> bool:
        """Whether that sequence is past its prompt and not finished."""
        return owner in self._decoding

    def oldest_to_begin(self) -> int | None:
        """Of those without a first token, the one handed over first."""
        for sequence in (*self._prefilling, *self._waiting):
            if not sequence.began:
                return sequence.owner
        return None

    def holds_to_the_end(self, more: Iterable[tuple[int, int]]) -> bool:
        """Whether all in it and `more`, (prompt, output) tokens, fit the KV cache until each of them is finished.

        Takes it that prompts are computed at once. At each end, all that end no earlier hold what they have by then.
        """
        now = self._decode_steps
        runs = [
            (each.ends_at_token, each.held_tokens + each.output_left - each.ends_at_token)
            for each in self._decoding.values()
        ]
        runs += [(now + each.output_left, each.prompt_tokens - now) for each in (*self._prefilling, *self._waiting)]
        runs += [(now + output, prompt - now) for prompt, output in more]
        runs.sort(reverse=True)
        held, most = 0, self.profile.kv_tokens
        for count, (end, tokens) in enumerate(runs, 1):
            held += tokens
            if held + count * end > most:
                return False
        return True


@dataclass(slots=True, eq=False)
class ScheduleRun:
    """The schedule at one moment, to be gone on from, or gone back to.

    `index` is the next arrival, `waiting` are those held back, `handing` those to be handed over and when. `reserved`
    is what those `inside` the engine hold at most. `calm_index` is the first arrival since nobody waited for a first
    token, `full_at_s` when last somebody was held back for want of room, `full_need` the least (prompt
    and output tokens) there was no room for since something finished.
    """

    engine: ForkableEngine
    at_s: float = 0.0
    now_s: float = 0.0
    index: int = 0
    waiting: deque[int] = field(default_factory=deque)
    handing: deque[tuple[float, int]] = field(default_factory=deque)
    reserved: int = 0
    inside: int = 0
    calm_index: int = 0
    full_at_s: float = -math.inf
    full_need: float = math.inf

    def fork(self) -> ScheduleRun:
        """A copy that goes on by itself."""
        other = copy.copy(self)
        other.engine = self.engine.fork()
        other.waiting, other.handing = self.waiting.copy(), self.handing.copy()
        return other

    @property
    def over(self) -> bool:
        """Nothing under way and nobody waiting."""
        return self.engine.ends_s is None and not self.waiting and not self.handing


class Schedule:
    """The trace, who of it stays, and how that went when it was last run. Indices are into the trace.

    A first token that comes after the budget is late, unless its request is `excused`.
    """

    def __init__(self, trace: Sequence[TraceRequest], profile: EngineProfile, promise: Promise) -> None:
        self.profile = profile
        self.budget_s = promise.ttft_budget_s
        self.pinned = promise.pinned
        self.count = len(trace)
        self.step_tokens = profile.max_batched_tokens
        self.arrival_s = [each.arrival_s for each in trace]
        self.prompt = [each.prompt_tokens for each in trace]
        self.own = [max(1, each.prompt_tokens - each.prefix_hit_tokens) for each in trace]
        self.output = [each.output_tokens for each in trace]
        self.stays = bytearray(self.count)
        self.excused = bytearray(self.count)
        self.first_s = [math.inf] * self.count
        self.hand_over_s = [0.0] * self.count

    def late_as_it_is(self) -> set[int]:
        """Who of those that stay is late, nobody sent away."""
        self.excused = bytearray(self.count)
        run, late = ScheduleRun(ForkableEngine(self.profile)), set()
        while found := self.advance(run, math.inf):
            late.update(found)
        return late

    def advance(self, run: ScheduleRun, until_s: float) -> list[int]:
        """Run on through what happens up to `until_s`, or up to the first late token: those late by it, else none.

        Events in the order of the replay: at the same time steps before arrivals before hand-overs.
        """
        arrival_s, stays, engine, index, count = self.arrival_s, self.stays, run.engine, run.index, self.count
        late: list[int] = []
        while not late:
            while index < count and not stays[index]:
                index += 1
            ends_s = engine.ends_s
            step_s = math.inf if ends_s is None else ends_s
            arrives_s = arrival_s[index] if index < count else math.inf
            hand_s = run.handing[0][0] if run.handing else math.inf
            now_s = min(step_s, arrives_s, hand_s)
            if now_s > until_s or now_s == math.inf:
                break
            run.now_s = now_s
            if step_s == now_s:
                report = engine.step()
                for i in report.began:
                    self.first_s[i] = now_s
                    if now_s - arrival_s[i] > self.budget_s and not self.excused[i]:
                        late.append(i)
                for i in report.finished:
                    run.inside -= 1
                    run.reserved -= self.prompt[i] + self.output[i]
                    run.full_need = math.inf
                if run.waiting:
                    self._hand_over(run)
                elif not engine.next_prefill_tokens:
                    run.calm_index = index
            elif arrives_s == now_s:
                if run.handing or not self._has_room(run, index):
                    run.waiting.append(index)
                else:
                    self._take(run, index)
                    self._submit(run, index)
                index += 1
            else:
                self._submit(run, run.handing.popleft()[1])
        # Those passed over who come only later may yet be kept.
        reached_s = run.now_s if late else until_s
        while index and arrival_s[index - 1] > reached_s:
            index -= 1
        run.index = index
        return late

    def _has_room(self, run: ScheduleRun, index: int) -> bool:
        """Rules 1 to 3 of the schedule."""
        engine = run.engine
        if run.inside == 0:
            return True
        need = self.prompt[index] + self.output[index]
        if need >= run.full_need or run.inside > self.profile.max_sequences:
            run.full_at_s = run.now_s
            return False
        tokens = engine.next_prefill_tokens + sum(self.own[i] for _, i in run.handing)
        if tokens and tokens + self.own[index] > self.step_tokens:
            return False
        if run.reserved + need <= self.profile.kv_tokens:
            return True
        more = [(self.prompt[i], self.output[i]) for i in (index, *(i for _, i in run.handing))]
        if engine.holds_to_the_end(more):
            return True
        run.full_need, run.full_at_s = need, run.now_s
        return False

    def _hand_over(self, run: ScheduleRun) -> None:
        """Take from those waiting who fits the next step, each a moment after the other."""
        ends_s = run.engine.first_step_ends_s
        at_s = run.now_s + _APART_S
        place = 0
        while place < len(run.waiting) and at_s < ends_s:
            index = run.waiting[place]
            if self._has_room(run, index):
                del run.waiting[place]
                self._take(run, index)
                run.handing.append((at_s, index))
                at_s += _APART_S
            elif run.full_at_s == run.now_s and place < _MOST_OVERTAKEN:
                place += 1
            else:
                break

    def _take(self, run: ScheduleRun, index: int) -> None:
        run.inside += 1
        run.reserved += self.prompt[index] + self.output[index]

    def _submit(self, run: ScheduleRun, index: int) -> None:
        self.hand_over_s[index] = run.now_s
        run.engine.submit(EngineSequence(index, self.prompt[index], self.own[index], self.output[index]), run.now_s)
