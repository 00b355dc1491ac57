"""A circuit breaker: stop calling what keeps failing, try it before trusting it again (Nygard, *Release It!*).

States and events are `TABLE`; everything else here only decides when an event has happened. It has no clock and no
random generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class BreakerState(StrEnum):
    """Whether calls are let through: all of them, none, one at a time, none until the operator says so."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"


class BreakerEvent(StrEnum):
    """What moves a breaker from one state to another."""

    TRIP = "trip"
    REST = "rest"
    PROVE = "prove"
    ISOLATE = "isolate"
    RESTORE = "restore"


TABLE: Final[Mapping[tuple[BreakerState, BreakerEvent], BreakerState]] = MappingProxyType(
    {
        (BreakerState.CLOSED, BreakerEvent.TRIP): BreakerState.OPEN,
        (BreakerState.OPEN, BreakerEvent.REST): BreakerState.HALF_OPEN,
        (BreakerState.HALF_OPEN, BreakerEvent.TRIP): BreakerState.OPEN,
        (BreakerState.HALF_OPEN, BreakerEvent.PROVE): BreakerState.CLOSED,
        (BreakerState.CLOSED, BreakerEvent.ISOLATE): BreakerState.ISOLATED,
        (BreakerState.OPEN, BreakerEvent.ISOLATE): BreakerState.ISOLATED,
        (BreakerState.HALF_OPEN, BreakerEvent.ISOLATE): BreakerState.ISOLATED,
        (BreakerState.ISOLATED, BreakerEvent.RESTORE): BreakerState.HALF_OPEN,
    }
)
"""Where each event leads. A pair that is not here changes nothing."""


class Verdict(StrEnum):
    """What one call says of whom it went to.

    `UPSTREAM_FAULT`: it failed, or took too long. `LOCAL_FAULT`: we never got there (DNS, connect, TLS), which may
    be our own doing. `NEUTRAL`: nothing, as when the client hung up, or the request itself was refused.
    """

    SUCCESS = "success"
    UPSTREAM_FAULT = "upstream_fault"
    LOCAL_FAULT = "local_fault"
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerLimits:
    """When it opens, for how long, and what closes it.

    It opens after `failures` in a row, or after fewer once a call fails that began in the midst of them, `failing_s`
    after the first at the earliest; and, for what fails now and then, when `failing_share` of at least `least_calls`
    recent calls failed (a call counts half after `half_life_s`). Faults of ours and of the other side are each counted
    for themselves: getting there at all says that the road is open, not that the other side is well.

    Open, it lets nothing through for `open_s`, twice as long each time it opens again soon, `longest_open_s` at
    most; up to half of that is taken off at random, so that not all who wait come back at once. Then one call at a
    time is let through, and `successes` of them in a row close it.
    """

    failures: int = 5
    failing_s: float = 2.0
    failing_share: float = 0.5
    least_calls: float = 8.0
    half_life_s: float = 10.0
    open_s: float = 1.0
    longest_open_s: float = 30.0
    successes: int = 2


@dataclass(slots=True)
class _Run:
    """Failures in a row of one kind, and since when."""

    failures: int = 0
    since_s: float = 0.0

    def add(self, now_s: float) -> None:
        if self.failures == 0:
            self.since_s = now_s
        self.failures += 1

    def is_enough(self, limits: BreakerLimits, entered_s: float, now_s: float) -> bool:
        # A call from before says nothing of now: of a crowd that came at once, those that fail are the last to be over.
        lasting = self.failures > 1 and entered_s >= self.since_s and now_s - self.since_s >= limits.failing_s
        return lasting or self.failures >= limits.failures


@dataclass(frozen=True, slots=True)
class Ticket:
    """One call that was let through: when, and in which of the breaker's lives."""

    generation: int
    entered_s: float


class Breaker:
    """One breaker. `random` gives numbers from 0 up to 1; times are monotonic seconds.

    A call is let through by `enter`, which gives a ticket, and reported with it. What comes back from calls that
    entered before the state last changed is not counted: it tells of the time before.
    """

    def __init__(self, limits: BreakerLimits, random: Callable[[], float]) -> None:
        self._limits = limits
        self._random = random
        self._state = BreakerState.CLOSED
        self._generation = 0
        self._runs = {Verdict.UPSTREAM_FAULT: _Run(), Verdict.LOCAL_FAULT: _Run()}
        self._calls = self._failed_calls = 0.0
        self._counted_at_s = 0.0
        self._open_until_s = 0.0
        self._closed_at_s = -math.inf
        self._openings = 0
        self._trial: int | None = None
        self._proved = 0
        self._probe_failed = False
        self.opened_by: Verdict | None = None
        """The kind of fault it last opened for; None while it is closed."""
        self.not_closed_since_s: float | None = None
        """Since when it has not been closed; None while it is."""

    def state(self, now_s: float) -> BreakerState:
        """The state at `now_s`."""
        if self._state is BreakerState.OPEN and now_s >= self._open_until_s:
            return TABLE[self._state, BreakerEvent.REST]
        return self._state

    def admits(self, now_s: float) -> bool:
        """Whether `enter` would let a call through."""
        state = self.state(now_s)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and self._trial is None)

    def open_for_s(self, now_s: float) -> float:
        """How long it still lets nothing through: 0 unless it is open."""
        return max(0.0, self._open_until_s - now_s) if self._state is BreakerState.OPEN else 0.0

    def enter(self, now_s: float) -> Ticket | None:
        """A ticket for one call, to be given back with `report`; None where none is let through."""
        if not self.admits(now_s):
            return None
        if self._state is BreakerState.OPEN:
            self._happened(BreakerEvent.REST, now_s)
        if self._state is BreakerState.HALF_OPEN:
            self._generation += 1  # each trial has a ticket of its own: a late word of the last one is not this one's
            self._trial = self._generation
        return Ticket(self._generation, now_s)

    def report(self, ticket: Ticket, verdict: Verdict, now_s: float) -> bool:
        """How a call went; whether that changed the state. May be told twice: a good beginning, and then a bad end."""
        if ticket.generation != self._generation:
            return False
        before = self._state
        if self._state is BreakerState.CLOSED:
            self._count(verdict, ticket.entered_s, now_s)
        elif self._state is BreakerState.HALF_OPEN:
            self._trial = None
            self._try(verdict, now_s)
        return self._state is not before

    def probed(self, verdict: Verdict, now_s: float, next_probe_s: float) -> bool:
        """Take in a health check, which asks something that costs nothing; the next one comes at `next_probe_s`.

        Returns whether that changed the state.

        A check that passes after one that failed (or that shows a road that was closed to be open) ends the open time
        at once; while checks fail no call is tried. One that passes all along says nothing: what the calls fail at is
        something it cannot see.
        """
        fault = verdict in self._runs
        if verdict is Verdict.NEUTRAL:
            return False
        before = self._state
        if self._state is BreakerState.OPEN:
            if fault:
                self._probe_failed = True
                self._open_until_s = max(self._open_until_s, next_probe_s)
            elif self._probe_failed or self.opened_by is Verdict.LOCAL_FAULT:
                self._happened(BreakerEvent.REST, now_s)
        elif self._state is BreakerState.HALF_OPEN:
            if fault:
                self._trip(verdict, now_s)
        elif self._state is BreakerState.CLOSED and fault:
            self._count(verdict, now_s, now_s)
        elif self._state is BreakerState.CLOSED:
            self._runs[Verdict.LOCAL_FAULT].failures = 0
        return self._state is not before

    def isolate(self, now_s: float) -> None:
        """Let nothing through until `restore`."""
        self._happened(BreakerEvent.ISOLATE, now_s)

    def restore(self, now_s: float) -> None:
        """End an isolation, carefully."""
        self._happened(BreakerEvent.RESTORE, now_s)

    def _count(self, verdict: Verdict, entered_s: float, now_s: float) -> None:
        if verdict is Verdict.NEUTRAL:
            return
        faded = 0.5 ** (max(0.0, now_s - self._counted_at_s) / self._limits.half_life_s)
        self._counted_at_s = max(now_s, self._counted_at_s)
        self._calls = self._calls * faded + 1.0
        self._failed_calls *= faded
        if verdict is Verdict.SUCCESS:
            self._clear_runs()
            return
        self._failed_calls += 1.0
        self._runs[verdict].add(now_s)
        if verdict is Verdict.UPSTREAM_FAULT:
            self._runs[Verdict.LOCAL_FAULT].failures = 0
        often = self._calls >= self._limits.least_calls and (
            self._failed_calls >= self._limits.failing_share * self._calls
        )
        if often or self._runs[verdict].is_enough(self._limits, entered_s, now_s):
            self._trip(verdict, now_s)

    def _try(self, verdict: Verdict, now_s: float) -> None:
        if verdict is Verdict.SUCCESS:
            self._proved += 1
            if self._proved >= self._limits.successes:
                self._happened(BreakerEvent.PROVE, now_s)
        elif verdict is not Verdict.NEUTRAL:
            self._trip(verdict, now_s)

    def _trip(self, verdict: Verdict, now_s: float) -> None:
        limits = self._limits
        if self._state is BreakerState.CLOSED and now_s - self._closed_at_s > limits.longest_open_s:
            self._openings = 0
        longest_s = min(limits.longest_open_s, limits.open_s * 2.0 ** min(self._openings, 32))
        self._openings += 1
        self._open_until_s = now_s + longest_s * (1.0 - 0.5 * self._random())
        self._happened(BreakerEvent.TRIP, now_s)
        self.opened_by = verdict

    def _happened(self, event: BreakerEvent, now_s: float) -> None:
        state = TABLE.get((self._state, event))
        if state is None:
            return
        if self.not_closed_since_s is None:
            self.not_closed_since_s = now_s
        self._state = state
        self._generation += 1
        self._trial = None
        self._proved = 0
        self._probe_failed = False
        self._calls = self._failed_calls = 0.0
        self._clear_runs()
        if state is BreakerState.CLOSED:
            self._closed_at_s = now_s
            self.opened_by = self.not_closed_since_s = None

    def _clear_runs(self) -> None:
        for run in self._runs.values():
            run.failures = 0


def drawing() -> str:
    """`TABLE` as a Mermaid state diagram."""
    lines = [f"    {state} --> {after}: {event}" for (state, event), after in TABLE.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {BreakerState.CLOSED}", *lines])
