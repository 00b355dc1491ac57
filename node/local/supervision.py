"""When an engine is healthy, hung, dead, tried again or given up: values in, values out, no clock and no engine.

    starting ──started──▶ ready ◀──moved── suspect
       ▲   │               │  └──stalled──▶ │
       │   └─died─▶ down ◀─died─────────────┴─died, hung
       └──rebuild───┘

`node.local.supervisor` acts on it. Progress is what an engine's health is read from: vLLM's own health check looks at
flags that a dead engine sets, and one that hangs sets none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from node.routing.profile import StepModel
from node.routing.values import EngineState


class Event(StrEnum):
    """What can happen to a supervised engine. `REBUILD`: the pause after a failure is over."""

    STARTED = "started"
    STALLED = "stalled"
    MOVED = "moved"
    HUNG = "hung"
    DIED = "died"
    REBUILD = "rebuild"


TRANSITIONS: Mapping[EngineState, Mapping[Event, EngineState]] = {
    EngineState.STARTING: {Event.STARTED: EngineState.READY, Event.DIED: EngineState.DOWN},
    EngineState.READY: {Event.STALLED: EngineState.SUSPECT, Event.DIED: EngineState.DOWN},
    EngineState.SUSPECT: {
        Event.MOVED: EngineState.READY,
        Event.HUNG: EngineState.DOWN,
        Event.DIED: EngineState.DOWN,
    },
    EngineState.DOWN: {Event.REBUILD: EngineState.STARTING},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How patient the supervision is. Seconds, unless the name says otherwise.

    An engine that has work and makes no step is suspect after a `suspect_share` of `stall_s`, and hung after `stall_s`;
    in its first `fresh_s`, in which kernels are still compiled on first use, after `fresh_factor` times that. Where
    steps are slow, it has at least as long as `steps_to_suspect` and `steps_to_hang` of the longest steps it can make.

    After a failure it is built anew, `attempts` times within `window_s`; what fails once more is given up. Before the
    n-th attempt there is a pause: a random part of `first_pause_s` · 2ⁿ⁻¹, or of `longest_pause_s` if that is less
    ("full jitter": Brooker, Exponential Backoff And Jitter). An engine built anew is given its slots over `ramp_s`.
    """

    stall_s: float = 60.0
    suspect_share: float = 1 / 6
    fresh_s: float = 300.0
    fresh_factor: float = 3.0
    steps_to_suspect: float = 5.0
    steps_to_hang: float = 20.0
    attempts: int = 5
    window_s: float = 1800.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    ramp_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """One engine's life so far. Times are monotonic seconds.

    `since_s` is when `state` began, `starts` how many engines have been begun; `deaths` counts those that failed in any
    way, `hangs` those of them that were killed for making no step. `failed_at_s` are the failures of the last window,
    `why` the last one in words. `rebuild_at_s` is when the next engine is begun: None unless the state is down, and
    None there too once it has been `given_up`. `start_took_s` is how long the last start took that came to its end.
    """

    state: EngineState
    since_s: float
    starts: int = 1
    deaths: int = 0
    hangs: int = 0
    failed_at_s: tuple[float, ...] = ()
    why: str | None = None
    rebuild_at_s: float | None = None
    given_up: bool = False
    start_took_s: float | None = None

    @classmethod
    def begin(cls, now_s: float) -> Supervision:
        """An engine whose first start begins now."""
        return cls(state=EngineState.STARTING, since_s=now_s)

    def after(self, event: Event, now_s: float) -> Supervision:
        """What `event` makes of it; failures go through `failed`. Raises `KeyError` for one that cannot happen now."""
        state = TRANSITIONS[self.state][event]
        changed = replace(self, state=state, since_s=now_s)
        if event is Event.STARTED:
            return replace(changed, start_took_s=now_s - self.since_s)
        if event is Event.REBUILD:
            return replace(changed, starts=self.starts + 1, rebuild_at_s=None)
        return changed

    def failed(
        self,
        event: Event,
        now_s: float,
        rules: Rules,
        rng: random.Random,
        *,
        why: str,
        for_good: bool = False,
    ) -> Supervision:
        """After `Event.DIED` or `Event.HUNG`: down, and either to be built anew or given up.

        `for_good`: it would fail the same way again, so there is no other attempt.
        """
        failed_at_s = (*(at_s for at_s in self.failed_at_s if now_s - at_s < rules.window_s), now_s)
        given_up = for_good or len(failed_at_s) > rules.attempts
        longest_s = min(rules.longest_pause_s, rules.first_pause_s * 2.0 ** (len(failed_at_s) - 1))
        return replace(
            self.after(event, now_s),
            deaths=self.deaths + 1,
            hangs=self.hangs + (event is Event.HUNG),
            failed_at_s=failed_at_s,
            why=why,
            rebuild_at_s=None if given_up else now_s + rng.uniform(0.0, longest_s),
            given_up=given_up,
        )

    def back_in_s(self, now_s: float) -> float | None:
        """In how many seconds the engine should be ready again, by its last start. None: nobody knows, or never."""
        if self.given_up or self.start_took_s is None:
            return None
        if self.state is EngineState.STARTING:
            return max(0.0, self.since_s + self.start_took_s - now_s)
        if self.state is EngineState.DOWN:
            return max(0.0, (self.rebuild_at_s or now_s) - now_s) + self.start_took_s
        return 0.0

    def shown_state(self, now_s: float, patience_s: float) -> EngineState:
        """The state that routing is to know.

        Down makes it refuse whatever cannot leave. An engine that should be back within `patience_s`, which is how long
        a caller waits at most, is shown as starting, and who cannot leave waits for it; so is one that nobody has seen
        start yet.
        """
        if self.given_up or self.state not in (EngineState.STARTING, EngineState.DOWN):
            return self.state
        back_in_s = self.back_in_s(now_s)
        return EngineState.STARTING if back_in_s is None or back_in_s <= patience_s else EngineState.DOWN

    def slots(self, max_sequences: int, now_s: float, rules: Rules) -> int:
        """How many sequences the engine is given at a time.

        All of them, except in the first seconds after it was built anew: what has waited, or what killed the last one,
        would come all at once.
        """
        ready_for_s = now_s - self.since_s
        if self.starts == 1 or self.state is not EngineState.READY or ready_for_s >= rules.ramp_s:
            return max_sequences
        return max(1, math.ceil(max_sequences * ready_for_s / rules.ramp_s))


@dataclass(frozen=True, slots=True)
class Patience:
    """For how many seconds an engine that has work may make no step before it is suspect, and before it is hung."""

    suspect_s: float
    hung_s: float


def patience(rules: Rules, ready_for_s: float, longest_step_s: float | None) -> Patience:
    """The patience with an engine that is up for `ready_for_s`, and whose longest step takes `longest_step_s`.

    The latter is None as long as nothing was learned.
    """
    step_s = longest_step_s or 0.0
    fresh = rules.fresh_factor if ready_for_s < rules.fresh_s else 1.0
    suspect_s = max(rules.stall_s * rules.suspect_share, rules.steps_to_suspect * step_s)
    return Patience(suspect_s, max(rules.stall_s * fresh, rules.steps_to_hang * step_s, suspect_s))


def longest_step_s(step: StepModel | None, max_sequences: int, max_batched_tokens: int) -> float | None:
    """How long a step takes that is as full as can be, None before any was learned from."""
    return None if step is None else step.step_s(max_sequences, max_batched_tokens)


@dataclass(frozen=True, slots=True)
class Progress:
    """How an engine gets on, looked at again and again. `stalled_s`: how long it has had work and made no step.

    Only time that was watched counts, `longest_look_s` at most between two looks: where this process was stopped itself
    (a debugger, a suspended machine, a blocked loop), the engine's reports have not been read either. Time without work
    neither counts nor clears: an engine whose callers all leave it has made no step.
    """

    steps: int
    looked_at_s: float
    stalled_s: float = 0.0

    def look(self, steps: int, now_s: float, *, busy: bool, longest_look_s: float) -> Progress:
        """After a look at `now_s`, when the engine had made `steps` in all. `busy`: it has work."""
        if steps != self.steps:
            return Progress(steps, now_s)
        passed_s = min(now_s - self.looked_at_s, longest_look_s) if busy else 0.0
        return Progress(steps, now_s, self.stalled_s + passed_s)

    def verdict(self, state: EngineState, patience: Patience) -> Event | None:
        """What it means for an engine in `state`, None while nothing changes."""
        if state is EngineState.READY and self.stalled_s >= patience.suspect_s:
            return Event.STALLED
        if state is EngineState.SUSPECT:
            if self.stalled_s < patience.suspect_s:
                return Event.MOVED
            if self.stalled_s >= patience.hung_s:
                return Event.HUNG
        return None
