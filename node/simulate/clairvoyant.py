"""A schedule of a router that knew the future, in the simulator the policies are replayed in: what can be had.

`node.simulate.optimum` says what no router could have paid less than; this is the other end of the bracket. It is a
policy like any other, so `node.simulate.replay` runs it, on the same engine and with the same cloud. It knows every
arrival, every answer's length and the cloud's draws, and it decides ahead: `local` is a set of requests that stay, the
others leave as they arrive. Its spend is therefore an upper bound of the least that can be paid in this simulator for
its promise, and nothing more: the search is a local one, and its schedules are of one kind
(`node.simulate.schedule`).

The search. It drives a `SimulatedEngine` by itself, without queue and learning (20 to 40 times as fast as a replay),
forks it every two seconds, and goes back to a fork to try something else.

 1. Repair: whenever a first token is late, the request that is cheapest to send away per second of its work, among
    those that stood in the way, leaves; the engine goes back to before its arrival. After Moore and Hodgson (1968), who
    drop the longest job before the first late one. Where only pinned requests are left, they are late.
 2. Improve: each request in the cloud is tried here, dearest per second of work first; it stays if nobody is late for
    some seconds, or if sending away cheaper ones that cost less in all puts that right.

Nobody who stays is late on purpose, although `late_share` would allow it: what is late are draws of the cloud, pinned
requests that would be late without any others (or about as many), and whatever a start given had late.

How far from the bound it ends, in hundredths of what all spillable requests cost in the cloud: on six public traces
with a GPU-like engine, a fifth of the requests pinned and a budget of 1 s, 0.5 to 6 at 0.7 of what the engine can do,
2 to 10 at 1.0, 1 to 16 at 1.5 (five of them). It is far where the KV cache or prompts of tens of thousands of tokens
are what is short: there the bound is loose (it may split and stop requests at will) and the search is weak, in
unknown parts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from node.routing.profile import EngineProfile
from node.simulate.offered import sustained_batch
from node.simulate.optimum import Bound
from node.simulate.providers import Provider
from node.simulate.replay import Promise, Replay, replay
from node.simulate.schedule import ForkableEngine, HindsightPolicy, Schedule, ScheduleRun, step_token_choices
from node.simulate.values import TraceRequest

LATE_SHARE = 0.005
"""Of all spillable requests so many may be late: twice as strict as what the node promises."""

_FORK_S = 2.0
_NEAR_S, _FAR_S = 6.0, 60.0  # how far back those who stood in the way are looked for: first, and for pinned ones
_AHEAD_S = 8.0  # how long nobody may be late after a request that is tried
_MOST_LEAVING = 3  # for the sake of one
_MOST_PARTS = 128  # a round tries one of so many parts of those in the cloud; a round without gain makes them smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class Clairvoyant:
    """The cheapest schedule found.

    `local` are the spillable requests that stay, `policy` what runs the schedule, `replay` how it ran, `rounds` how
    many rounds of improvement there were. `late` counts the spillable requests that were late, here or in the cloud,
    `pinned_late` the pinned ones, `pinned_late_alone` those that would have been, had the engine had no others.
    """

    spend_nano_usd: int
    local: frozenset[int]
    policy: HindsightPolicy
    replay: Replay
    rounds: int
    late: int
    pinned_late: int
    pinned_late_alone: int


def clairvoyant(
    trace: Sequence[TraceRequest],
    profile: EngineProfile,
    provider: Provider,
    promise: Promise,
    *,
    starts: Sequence[frozenset[int]] = (),
    bound: Bound | None = None,
    rounds: int = 8,
    late_share: float = LATE_SHARE,
) -> Clairvoyant:
    """The cheapest schedule of `trace`, sorted by arrival, that the search finds (see the module).

    It starts from each of `starts`, the requests some policy kept, and from what `bound` keeps; without either from
    everything. The result costs no more than a start that, run in this module's schedule, keeps the promise. The
    promise is that at most `late_share` of the spillable requests are late, and of the pinned ones no more than had the
    engine had no others, or about as many, or than such a start has. Outages and rate limits are not looked at.

    Deterministic; `rounds` is the most passes of improvement. Raises ValueError, as a replay does, for a pinned request
    larger than the KV cache.
    """
    search = ScheduleSearch(trace, profile, provider, promise)
    given = list(dict.fromkeys(starts))
    if bound is not None:
        given.append(frozenset(i for i, share in enumerate(bound.local_share) if share > 0.5))
    if not given:
        given.append(frozenset(range(len(trace))))
    alone = search.alone()
    spillable = len(trace) - len(promise.pinned)
    choices = step_token_choices(profile, promise)
    found: list[Plan] = []
    for start in starts:
        for search.step_tokens in choices:
            search.keep_only(start)
            plan = search.plan(search.late_as_it_is())
            if plan.late <= late_share * spillable:
                found.append(plan)
    most_pinned_late = max([len(alone), *(plan.pinned_late for plan in found)])
    search.spare_late = most_pinned_late - len(alone)
    for start in given:
        for search.step_tokens in choices:
            search.keep_only(start)
            search.repair()
            found.append(search.plan())

    def badness(plan: Plan) -> tuple[int, float, int]:
        over = max(0.0, plan.late - late_share * spillable)
        return max(0, plan.pinned_late - most_pinned_late), over, plan.spend

    best = min(found, key=badness)
    repaired = min((plan for plan in found if not plan.given), key=badness)
    search.step_tokens = repaired.step_tokens
    search.keep_only(repaired.local)
    done, parts = 0, 2
    while done < rounds and parts <= _MOST_PARTS and best.spend:
        search.improve(done, parts)
        search.repair()
        plan = search.plan()
        done += 1
        if badness(plan) < badness(repaired):
            repaired = plan
        else:  # too many at once come in each other's way
            search.keep_only(repaired.local)
            parts *= 4
        best = min(best, plan, key=badness)
    policy = HindsightPolicy(best.hand_over_s)
    ran = replay(trace, profile, provider, promise, policy)
    late = [i for i, fate in enumerate(ran.fates) if fate is None or not (fate.ttft_s or 0.0) <= promise.ttft_budget_s]
    return Clairvoyant(
        spend_nano_usd=sum(fate.cost_nano_usd for fate in ran.fates if fate is not None),
        local=best.local,
        policy=policy,
        replay=ran,
        rounds=done,
        late=sum(i not in promise.pinned for i in late),
        pinned_late=sum(i in promise.pinned for i in late),
        pinned_late_alone=len(alone),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A set that stays, when each of it is handed over, and what that comes to. `given`: it is a start, untouched."""

    local: frozenset[int]
    hand_over_s: dict[int, float]
    step_tokens: int
    spend: int
    late: int
    pinned_late: int
    given: bool


class ScheduleSearch(Schedule):
    """A schedule, what each of its requests is worth, and whom to send away or to take back."""

    def __init__(
        self, trace: Sequence[TraceRequest], profile: EngineProfile, provider: Provider, promise: Promise
    ) -> None:
        super().__init__(trace, profile, promise)
        self.cost = [provider.price.cost_of_nano_usd(each.prompt_tokens, each.output_tokens) for each in trace]
        batch, step = sustained_batch(trace, profile), profile.step
        per_prompt_s = step.per_prefill_token_s + step.base_s / max(1.0, profile.max_batched_tokens - batch)
        # What `base_s` a token bears: the share of the cache its sequence holds, or of the sequences there can be.
        cache_is_tight = batch < profile.max_sequences
        work_s = [
            own * per_prompt_s
            + output
            * (
                step.per_decode_s
                + step.base_s
                * ((prompt + output / 2) / profile.kv_tokens if cache_is_tight else 1 / profile.max_sequences)
            )
            for own, prompt, output in zip(self.own, self.prompt, self.output, strict=True)
        ]
        self.worth = [cost / seconds for cost, seconds in zip(self.cost, work_s, strict=True)]
        most = min(profile.kv_tokens, profile.context_tokens)
        self.spillable = [i for i in range(self.count) if i not in self.pinned]
        self.fitting = [i for i in self.spillable if self.prompt[i] + self.output[i] <= most]
        self.late_in_cloud = {i for i in self.spillable if not provider.ttft_s(i) <= self.budget_s}
        self.late_anyway = bytearray(self.count)
        self.spare_late = 0  # pinned ones that may be late beyond those

    def keep_only(self, local: frozenset[int]) -> None:
        """The pinned ones and, of those given, who fits the engine."""
        self.stays = bytearray(self.count)
        for i in self.pinned:
            self.stays[i] = 1
        for i in self.fitting:
            self.stays[i] = i in local

    def alone(self) -> set[int]:
        """The pinned requests that are late even if nobody else stays; they are never again a reason to repair."""
        self.keep_only(frozenset())
        late = self.late_as_it_is()
        for i in late:
            self.late_anyway[i] = 1
        return late

    def plan(self, late: set[int] | None = None) -> Plan:
        """What was last run. `late` when it was run as it is."""
        local = frozenset(i for i in self.fitting if self.stays[i])
        given = late is not None
        if late is None:
            late = {
                i for i in range(self.count) if self.stays[i] and self.first_s[i] - self.arrival_s[i] > self.budget_s
            }
        return Plan(
            local=local,
            hand_over_s={i: self.hand_over_s[i] for i in (*local, *self.pinned)},
            step_tokens=self.step_tokens,
            spend=sum(self.cost[i] for i in self.spillable if not self.stays[i]),
            late=len(late - self.pinned) + len(self.late_in_cloud - local),
            pinned_late=len(late & self.pinned),
            given=given,
        )

    def repair(self) -> None:
        """Send away, from the first late one to the last, whoever is cheapest among those in the way."""
        self.excused = bytearray(self.late_anyway)
        forks = [ScheduleRun(ForkableEngine(self.profile))]
        run = forks[0].fork()
        while run.index < self.count or not run.over:
            late = self.advance(run, run.at_s + _FORK_S)
            if not late:
                # The trace may be silent for hours.
                idle_s = self.arrival_s[run.index] - _FORK_S if run.over and run.index < self.count else 0.0
                run.at_s = max(run.at_s + _FORK_S, idle_s)
                forks.append(run.fork())
                since_s = self._waits_since_s(run) - _FAR_S - _FORK_S
                while len(forks) > 2 and forks[1].at_s < since_s:
                    del forks[0]
                continue
            leaves = self.in_the_way(run, late[0], forks[0].index)
            if leaves is None:
                for i in late:
                    self.excused[i] = 1
                continue
            self.stays[leaves] = 0
            while forks[-1].index > leaves:
                forks.pop()
            run = forks[-1].fork()

    def improve(self, number: int, parts: int) -> None:
        """Try one of `parts` of those in the cloud where they stand; which, says `number`."""
        self.excused = bytearray(self.late_anyway)
        away = sorted((i for i in self.fitting if not self.stays[i]), key=lambda i: (-self.worth[i], i))
        tried: dict[int, list[int]] = {}
        for i in away[number % parts :: parts]:
            tried.setdefault(int(self.arrival_s[i] / _FORK_S), []).append(i)
        run = ScheduleRun(ForkableEngine(self.profile))
        for cell in sorted(tried):
            begin_s = cell * _FORK_S
            while late := self.advance(run, math.nextafter(begin_s, -math.inf)):
                for i in late:
                    self.excused[i] = 1
            ahead = run.fork()  # who is late without any of them is not held against them
            blameless: list[int] = []
            while late := self.advance(ahead, begin_s + _FORK_S + _AHEAD_S):
                blameless += late
                for i in late:
                    self.excused[i] = 1
            for i in tried[cell]:
                self.try_here(run, i)
            for i in blameless:
                self.excused[i] = self.late_anyway[i]

    def try_here(self, before: ScheduleRun, new: int) -> None:
        """Keep `new` if it and those it drives out leave nobody late for a while, and cost less than it."""
        self.stays[new] = 1
        out: list[int] = []
        paid = 0
        run = before.fork()
        while late := self.advance(run, self.arrival_s[new] + _AHEAD_S):
            leaves = None
            if len(out) < _MOST_LEAVING:
                leaves = self.in_the_way(run, late[0], before.index, than=new)
            if leaves is not None:
                paid += self.cost[leaves]
            if leaves is None or paid >= self.cost[new]:
                self.stays[new] = 0
                for i in out:
                    self.stays[i] = 1
                return
            self.stays[leaves] = 0
            out.append(leaves)
            run = before.fork()

    def in_the_way(self, run: ScheduleRun, late: int, first: int, than: int | None = None) -> int | None:
        """Whose leaving costs least per second of work, among those with an index from `first` on that held `late` up.

        That is who came since the engine was last through with its prompts and, if there was no room, who decodes or
        overtook it. With `than`: only who is cheaper than that. Only for a pinned one there may be nobody. Where too
        many of them are late already it is then who came last before it, as all the engine did before has a part in it.
        """
        arrival_s, decodes = self.arrival_s[late], run.engine.decodes
        begin = max(first, bisect_left(self.arrival_s, min(run.now_s - _NEAR_S, arrival_s - self.budget_s)))
        calm = min(run.calm_index, late)
        if run.full_at_s >= arrival_s:
            end = run.index
        else:
            begin, end = max(begin, calm), late + 1
        found: int | None = None
        least = math.inf if than is None else self.worth[than]
        for i in range(begin, end):
            if self.stays[i] and self.worth[i] < least and i not in self.pinned and (i >= calm or decodes(i)):
                found, least = i, self.worth[i]
        if found is not None or than is not None or not self._too_many_late(late):
            return found
        begin = max(first, bisect_left(self.arrival_s, run.now_s - _FAR_S))
        return next((i for i in range(late, begin - 1, -1) if self.stays[i] and i not in self.pinned), None)

    def _too_many_late(self, until: int) -> bool:
        """Whether more pinned ones up to that index were late than may be."""
        late = anyway = 0
        for i in self.pinned:
            if i <= until:
                late += self.first_s[i] - self.arrival_s[i] > self.budget_s
                anyway += self.late_anyway[i]
        return late > anyway + self.spare_late * until / self.count

    def _waits_since_s(self, run: ScheduleRun) -> float:
        """When the first of those arrived that have no first token yet; now, if all have."""
        oldest = [i for i in (run.engine.oldest_to_begin(),) if i is not None]
        oldest += [run.waiting[0]] if run.waiting else []
        oldest += [run.handing[0][1]] if run.handing else []
        return min((self.arrival_s[i] for i in oldest), default=run.at_s)
