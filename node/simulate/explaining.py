"""Why a policy paid what it did beyond another: which requests only one of the two sent away, when, and why.

Both are replayed on the same trace with the same cloud, and the difference between their bills is taken apart request
by request. Every row is a sum of prices that were paid, so the rows add up to the difference.

What is not in the rows is what one decision did to the next: a request that stays takes time from those behind it. Two
figures beside them hint at it. `too_early` counts those sent away although a later one, with no shorter a prompt to
compute, was handed to the engine afterwards and had its first token before this one's deadline: it could have had that
one's place. And `Steps` says how full the engine's steps were: with fuller ones it gets more done in the same time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from node.errors import SettingsError
from node.progress import Progress
from node.routing.values import Target
from node.simulate.baselines import make_policy
from node.simulate.clairvoyant import clairvoyant
from node.simulate.comparing import Question
from node.simulate.offered import works_s
from node.simulate.replay import Fate, Replay, replay, summary

CLAIRVOYANT, BEST_DEPTH = "clairvoyant", "depth"
DEPTHS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
KEPT = 0.99
SPELLS = 20
_RUSH_S = 2.0  # on either side


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Requests that only one of the two sent away, for which the policy being explained gave the same reason.

    `rush`: they came while more work came than the engine can do. `excess_nano_usd` is what the policy paid for them,
    less what the other did.
    """

    reason: str
    rush: bool
    requests: int
    excess_nano_usd: int
    mean_prompt_tokens: float
    too_early: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """A part of the trace, in its seconds, and the difference of the bills of those who arrived in it."""

    from_s: float
    to_s: float
    excess_nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two. `step_tokens` is how many prompt tokens a step with any computed in the mean; None: none had."""

    policy: str
    spend_nano_usd: int
    sent: int
    step_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The difference, taken apart. `both_excess_nano_usd` is there where providers differ in price."""

    policy: Side
    other: Side
    only_policy: tuple[Group, ...]
    only_other: tuple[Group, ...]
    both: int
    both_excess_nano_usd: int
    spells: tuple[Spell, ...]
    most_step_tokens: int

    @property
    def excess_nano_usd(self) -> int:
        """What the policy paid beyond the other."""
        return self.policy.spend_nano_usd - self.other.spend_nano_usd


def explain(question: Question, policy: str, other: str, progress: Progress | None = None) -> Explanation:
    """Why `policy` paid more, or less, than `other`: a policy, `depth` (the best fixed one) or `clairvoyant`.

    Raises `SettingsError` for an unknown policy, and where there is no such other.
    """
    if progress is not None:
        progress.now(f"{policy} and {other}, to explain the difference")
    ours = _through(question, policy)
    if other == CLAIRVOYANT:
        if question.others:
            raise SettingsError("--explain clairvoyant: is reckoned for one provider")
        here = frozenset(index for index, fate in enumerate(ours.fates) if fate and fate.target is Target.LOCAL)
        starts = [here, frozenset(range(len(question.trace)))]
        found = clairvoyant(question.trace, question.profile, question.provider, question.promise, starts=starts)
        theirs = found.replay
    elif other == BEST_DEPTH:
        other, theirs = _best_depth(question)
    else:
        theirs = _through(question, other)
    return attribute(question, policy, ours, other, theirs)


def check(other: str) -> None:
    """Raises `SettingsError` for what `explain` cannot compare with."""
    if other not in (CLAIRVOYANT, BEST_DEPTH):
        make_policy(other)


def attribute(question: Question, policy: str, ours: Replay, other: str, theirs: Replay) -> Explanation:
    """The same for two replays of the question's trace."""
    trace = question.trace
    rush = _in_a_rush(question)
    early = _too_early(question, ours)
    only_policy: list[int] = []
    only_other: list[int] = []
    both: list[int] = []
    excess = [_paid(mine) - _paid(its) for mine, its in zip(ours.fates, theirs.fates, strict=True)]
    for index, (mine, its) in enumerate(zip(ours.fates, theirs.fates, strict=True)):
        sent, sent_there = _sent(mine), _sent(its)
        if sent or sent_there:
            (both if sent and sent_there else only_policy if sent else only_other).append(index)

    def grouped(indices: Sequence[int]) -> tuple[Group, ...]:
        by_kind: dict[tuple[str, bool], list[int]] = {}
        for index in indices:
            fate = ours.fates[index]
            by_kind.setdefault((str(fate.reason) if fate else "unanswered", rush[index]), []).append(index)
        groups = [
            Group(
                reason=reason,
                rush=hurried,
                requests=len(members),
                excess_nano_usd=sum(excess[index] for index in members),
                mean_prompt_tokens=sum(trace[index].prompt_tokens for index in members) / len(members),
                too_early=sum(index in early for index in members),
            )
            for (reason, hurried), members in by_kind.items()
        ]
        return tuple(sorted(groups, key=lambda group: (-abs(group.excess_nano_usd), group.reason, group.rush)))

    def side(name: str, done: Replay) -> Side:
        return Side(
            policy=name,
            spend_nano_usd=sum(map(_paid, done.fates)),
            sent=sum(map(_sent, done.fates)),
            step_tokens=done.prompt_tokens / done.prompt_steps if done.prompt_steps else None,
        )

    return Explanation(
        policy=side(policy, ours),
        other=side(other, theirs),
        only_policy=grouped(only_policy),
        only_other=grouped(only_other),
        both=len(both),
        both_excess_nano_usd=sum(excess[index] for index in both),
        spells=_spells(question, excess),
        most_step_tokens=question.profile.max_batched_tokens,
    )


def _through(question: Question, policy: str) -> Replay:
    return replay(
        question.trace, question.profile, question.provider, question.promise, make_policy(policy), question.others
    )


def _best_depth(question: Question) -> tuple[str, Replay]:
    """The cheapest of those that keep 99 % of the promises."""
    found: tuple[int, str, Replay] | None = None
    for depth in DEPTHS:
        name = f"depth:{depth}"
        done = _through(question, name)
        outcome = summary(question.trace, question.promise, done)
        if outcome.in_budget_share is None or outcome.in_budget_share < KEPT:
            continue
        if found is None or outcome.spend_nano_usd < found[0]:
            found = outcome.spend_nano_usd, name, done
    if found is None:
        raise SettingsError(f"--explain depth: no fixed depth keeps {KEPT:.0%} of the promises here")
    return found[1:]


def _sent(fate: Fate | None) -> bool:
    return fate is not None and fate.target is Target.CLOUD


def _paid(fate: Fate | None) -> int:
    return 0 if fate is None else fate.cost_nano_usd


def _in_a_rush(question: Question) -> list[bool]:
    """Of each request, whether in the seconds around its arrival more work came than the engine can do."""
    arrivals_s = [each.arrival_s for each in question.trace]
    sums_s = [0.0, *accumulate(work_s or 0.0 for work_s in works_s(question.trace, question.profile))]
    return [
        sums_s[bisect_right(arrivals_s, at_s + _RUSH_S)] - sums_s[bisect_left(arrivals_s, at_s - _RUSH_S)] > 2 * _RUSH_S
        for at_s in arrivals_s
    ]


def _too_early(question: Question, done: Replay) -> frozenset[int]:
    """Who was sent although it could have had the place of one that came later (see the module)."""
    trace, pinned, budget_s = question.trace, question.promise.pinned, question.promise.ttft_budget_s
    starts: list[tuple[float, float, int]] = []  # handed to the engine, first token, index
    for index, fate in enumerate(done.fates):
        if fate is not None and fate.target is Target.LOCAL and fate.ttft_s is not None and index not in pinned:
            starts.append((fate.decided_s, trace[index].arrival_s + fate.ttft_s, index))
    starts.sort()
    handed_s = [start[0] for start in starts]
    own = [max(1, each.prompt_tokens - each.prefix_hit_tokens) for each in trace]
    found = set()
    for index, fate in enumerate(done.fates):
        if fate is None or fate.target is not Target.CLOUD:
            continue
        deadline_s = trace[index].arrival_s + budget_s
        first, last = bisect_left(handed_s, fate.decided_s), bisect_left(handed_s, deadline_s)
        if any(
            later > index and own[later] >= own[index] and first_token_s <= deadline_s
            for _, first_token_s, later in starts[first:last]
        ):
            found.add(index)
    return frozenset(found)


def _spells(question: Question, excess: Sequence[int]) -> tuple[Spell, ...]:
    trace = question.trace
    first_s, length_s = trace[0].arrival_s, (trace[-1].arrival_s - trace[0].arrival_s) / SPELLS
    sums = [0] * SPELLS
    for request, nano_usd in zip(trace, excess, strict=True):
        place = int((request.arrival_s - first_s) / length_s) if length_s > 0 else 0
        sums[min(SPELLS - 1, place)] += nano_usd
    return tuple(
        Spell(from_s=first_s + place * length_s, to_s=first_s + (place + 1) * length_s, excess_nano_usd=nano_usd)
        for place, nano_usd in enumerate(sums)
        if nano_usd
    )
