"""How much of the future has to be known: the clairvoyant's search, shown only what comes within some seconds.

At every moment it knows all that has come and what comes within `lookahead_s`, lengths and all; of the rest it does not
even know that there is any. In steps of `decide_s` it plans for what it sees as `node.simulate.clairvoyant` does (who
is late makes the cheapest of those in the way leave, then each that leaves is tried here), settles for good who of
those arriving in the step stays, lets the step pass, and looks again. With all of the trace in sight it is that search.

It is no bound. Its plan takes what it sees for all there is, which a router that knows its workload would not, and it
decides on arrival, while the node's own may wait until the last safe moment and so sees what comes until then. What it
shows is how far ahead the schedules of hindsight look: if much lookahead is needed to come near them, what they save
comes from knowing what has not come yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.routing.profile import EngineProfile
from node.routing.values import Target
from node.simulate.clairvoyant import ScheduleSearch
from node.simulate.providers import Provider
from node.simulate.replay import Promise, Replay, replay
from node.simulate.schedule import ForkableEngine, HindsightPolicy, ScheduleRun, step_token_choices
from node.simulate.values import TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What came of it: the spend, how many spillable and pinned requests were late, and how it ran."""

    spend_nano_usd: int
    late: int
    pinned_late: int
    replay: Replay


def foresee(
    trace: Sequence[TraceRequest],
    profile: EngineProfile,
    provider: Provider,
    promise: Promise,
    *,
    lookahead_s: float,
    decide_s: float = 0.25,
) -> Foresight:
    """The trace, sorted by arrival, by a search that sees `lookahead_s` ahead (see the module).

    Of the lengths of a step that the clairvoyant's schedules may have, the one that comes out best is taken.
    """
    found = []
    for step_tokens in step_token_choices(profile, promise):
        search = _Sighted(trace, profile, provider, promise)
        search.step_tokens = step_tokens
        search.settle_all(lookahead_s, decide_s)
        plan = search.plan()
        found.append((plan.pinned_late, plan.spend, step_tokens, plan.hand_over_s))
    least_pinned_late = min(each[0] for each in found)
    slack = len(promise.pinned) // 100
    *_, hand_over_s = min(
        (each for each in found if each[0] <= least_pinned_late + slack), key=lambda each: (each[1], each[2])
    )
    ran = replay(trace, profile, provider, promise, HindsightPolicy(hand_over_s))
    late = {
        index
        for index, fate in enumerate(ran.fates)
        if fate is None or fate.ttft_s is None or fate.ttft_s > promise.ttft_budget_s
    }
    return Foresight(
        spend_nano_usd=sum(
            fate.cost_nano_usd for fate in ran.fates if fate is not None and fate.target is Target.CLOUD
        ),
        late=len(late - promise.pinned),
        pinned_late=len(late & promise.pinned),
        replay=ran,
    )


class _Sighted(ScheduleSearch):
    """The search, with those that it cannot see yet not there."""

    def settle_all(self, lookahead_s: float, decide_s: float) -> None:
        """Decide for every request, in order."""
        self.alone()
        self.excused = bytearray(self.late_anyway)
        fits = bytearray(self.count)
        for index in (*self.fitting, *self.pinned):
            fits[index] = 1
        self.stays = bytearray(self.count)
        now = ScheduleRun(ForkableEngine(self.profile))
        whole, settled, seen = self.count, 0, 0
        while settled < whole:
            begin_s = self.arrival_s[settled]
            while seen < whole and self.arrival_s[seen] <= begin_s + max(lookahead_s, decide_s):
                self.stays[seen] = fits[seen]
                seen += 1
            self.count = seen
            self._pass(now, begin_s, before=True)
            self._repair_from(now, settled)
            self._return_from(now, settled, seen)
            end_s = begin_s + decide_s
            self._pass(now, end_s)
            while settled < whole and self.arrival_s[settled] <= end_s:
                settled += 1
        self._pass(now, float("inf"))

    def _pass(self, run: ScheduleRun, until_s: float, *, before: bool = False) -> None:
        """Let time pass; whoever is late then is so for good. `before`: what happens at `until_s` is still to come."""
        until_s = until_s - 1e-9 if before else until_s
        while late := self.advance(run, until_s):
            for index in late:
                self.excused[index] = 1
        run.at_s = max(run.at_s, until_s)

    def _repair_from(self, now: ScheduleRun, first: int) -> None:
        """Send away, of those from index `first` on, whoever is cheapest in the way of one that is late."""
        excused: list[int] = []
        run = now.fork()
        while late := self.advance(run, float("inf")):
            leaves = self.in_the_way(run, late[0], first)
            if leaves is None:
                excused += late
                for index in late:
                    self.excused[index] = 1
                continue
            self.stays[leaves] = 0
            run = now.fork()
        for index in excused:
            self.excused[index] = self.late_anyway[index]

    def _return_from(self, now: ScheduleRun, first: int, end: int) -> None:
        """Try each of those sent away where it stands, dearest first."""
        excused: list[int] = []
        ahead = now.fork()  # who is late without any of them is not held against them
        while late := self.advance(ahead, float("inf")):
            excused += late
            for index in late:
                self.excused[index] = 1
        away = [index for index in self.fitting if first <= index < end and not self.stays[index]]
        for index in sorted(away, key=lambda index: (-self.worth[index], index)):
            if not self.stays[index]:
                self.try_here(now, index)
        for index in excused:
            self.excused[index] = self.late_anyway[index]
