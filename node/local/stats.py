"""From the engine's reports to what routing learns from: how long each step really took. No vLLM here, no clock.

A report carries the engine's own figure for the step, which leaves part of it out, and arrives at a time, which a busy
event loop or a starved process puts off. Neither is the duration; together they give it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from node.routing.observer import EngineObserver
from node.routing.profile import StepModel
from node.routing.quantiles import FadingQuantiles

STALL_S = 1.0
# A report this much sooner than its step can have taken has been held up behind the one before it.
_BUNCHED_SHARE = 0.7
_MOST_BUNCHED = 64
_RATIO_HALF_LIFE = 400.0  # steps
_NUDGE_S = 0.0002
_MOST_FIRST_TOKEN_S = 0.1
_WILDEST_RATIO = 3.0  # a figure that leaves out more than two thirds of a step says nothing about its length


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One scheduler report. `at_s` is when it arrived (monotonic).

    `running` and `waiting` are sequences after the step, `kv_cache_usage` a fraction. `computed` is false for a report
    that came without work. `decoding` sequences and `prefill_tokens` were in this step (`prefill_pairs`: each of these
    with all before it in its prompt), `elapsed_s` is the engine's own time for it, and `finished` counts sequences that
    ended in it.
    """

    at_s: float
    running: int
    waiting: int
    kv_cache_usage: float
    computed: bool = True
    decoding: int = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    elapsed_s: float | None = None
    finished: int = 0


@dataclass(frozen=True, slots=True)
class TimedStep:
    """What the reports come to: `count` equal steps of `seconds` each, with so much in them.

    `running` sequences filled `kv_cache_usage` of the KV cache (a fraction) as they began.
    """

    decoding: int
    prefill_tokens: int
    seconds: float
    count: int = 1
    running: int = 0
    kv_cache_usage: float = 0.0
    prefill_pairs: float = 0.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What has been learned by now, as an `EngineLoad` has it."""

    step: StepModel | None
    sequences_per_s: float | None
    tpot_s: float | None
    ttft_doubt: float
    queue_doubt: float
    first_token_s: float


class StepStats:
    """The engine's gauges and what it has taught, fed with every step.

    A step lasts from the previous report to its own when that one left sequences running (with asynchronous scheduling
    the engine's figure covers only part of a step), unless the gap is longer than the figure by more than `STALL_S`:
    then a process was stopped, or a grammar compiled. Reports that come too soon after one another were held up
    together: the time they all took is shared out by the engine's figures. Where that time cannot be told, after idling
    or when it is out of all proportion, a step lasts its figure times what steps usually last of theirs.

    `on_timed` gets every step once it is known how long it took.
    """

    def __init__(self, on_timed: Callable[[TimedStep], None] = lambda step: None) -> None:
        self._on_timed = on_timed
        self.running = 0
        self.waiting = 0
        self.kv_cache_usage: float | None = None
        self._last_at_s: float | None = None
        self.forget()

    def forget(self) -> None:
        """Drop what was learned (from first steps, which compile kernels), keep the gauges."""
        self._observer = EngineObserver()
        self._ratios = FadingQuantiles(_RATIO_HALF_LIFE)
        self._bunch: _Bunch | None = None
        self._rates: Rates | None = None
        self._first_token_s = 0.0

    def add(self, step: Step) -> None:
        """Take one report in."""
        gap_s = self._gap_s(step)
        if step.computed:
            if self._bunch is None or not self._held_up(step, gap_s):
                self._learn()
                self._bunch = _Bunch(gap_s)
            else:
                self._bunch.gap_s = None if self._bunch.gap_s is None else self._bunch.gap_s + (gap_s or 0.0)
            self._bunch.steps.append(step)
            self._bunch.more.append((self.running, self.kv_cache_usage or 0.0, step.prefill_pairs))
            if step.running == 0:
                self._learn()  # what comes next starts from idle
            # Sums, which late reports do not distort: here the time that passed is what counts.
            seconds = (step.elapsed_s or 0.0) if gap_s is None else gap_s
            self._observer.passed(decoding=step.decoding, finished=step.finished, seconds=seconds)
        self.running, self.waiting, self.kv_cache_usage = step.running, step.waiting, step.kv_cache_usage
        self._last_at_s = step.at_s
        self._rates = None

    def began(self, *, predicted_s: float, took_s: float, queued: bool) -> None:
        """Take in a first token: when it was predicted, and when it came. `queued`: predicted while it waited.

        What it takes beside its steps goes up a little with each that came later than predicted, and down with each
        that came sooner: so it settles where as many do the one as the other.
        """
        if not queued:
            nudged_s = self._first_token_s + math.copysign(_NUDGE_S, took_s - predicted_s)
            self._first_token_s = min(_MOST_FIRST_TOKEN_S, max(0.0, nudged_s))
        self._observer.began(predicted_s=predicted_s, took_s=took_s, queued=queued)
        self._rates = None

    def promised(self, *, kept: bool, here: bool) -> None:
        """Take in whether a request that could have left was in time, and whether it was to be served here."""
        self._observer.lateness.promised(kept=kept, here=here)
        self._rates = None

    def leaves(self) -> None:
        """A request leaves for the cloud."""
        self._observer.lateness.leaves()

    @property
    def cloud_share(self) -> float:
        """The share of the cloud's first tokens that the last safe moment has to leave time for."""
        return self._observer.lateness.cloud_share

    def answered(self, output_tokens: int) -> None:
        """Take in how long one answer was."""
        self._observer.answered(output_tokens)
        self._rates = None

    @property
    def rates(self) -> Rates:
        """What has been learned. Worked out once per step, however often it is asked for."""
        if self._rates is None:
            observer = self._observer
            self._rates = Rates(
                observer.step_model,
                observer.sequences_per_s(self.running),
                observer.tpot_s,
                observer.ttft_doubt,
                observer.queue_doubt,
                self._first_token_s,
            )
        return self._rates

    def _gap_s(self, step: Step) -> float | None:
        """From the previous report to this one, None where that says nothing about the step."""
        if self.running == 0 or self._last_at_s is None:
            return None
        gap_s = step.at_s - self._last_at_s
        return None if step.elapsed_s is not None and gap_s - step.elapsed_s > STALL_S else gap_s

    def _held_up(self, step: Step, gap_s: float | None) -> bool:
        if self._bunch is None or gap_s is None or len(self._bunch.steps) >= _MOST_BUNCHED:
            return False
        model = self._observer.step_model
        expected_s = model.step_s(step.decoding, step.prefill_tokens) if model is not None else 0.0
        return gap_s <= _BUNCHED_SHARE * max(expected_s, step.elapsed_s or 0.0)

    def _learn(self) -> None:
        """Learn from the last bunch, which is complete now; mostly it is a single step."""
        bunch, self._bunch = self._bunch, None
        if bunch is None:
            return
        steps, gap_s, more = bunch.steps, bunch.gap_s, bunch.more
        elapsed_s = sum(step.elapsed_s or 0.0 for step in steps)
        if len(steps) == 1 and gap_s is not None:
            if elapsed_s > 0.0:
                self._ratios.add(gap_s / elapsed_s)
            self._observe(steps[0].decoding, steps[0].prefill_tokens, gap_s, more=more[0])
            return
        ratio = self._ratios.quantile(0.5) or 1.0
        usual_s = ratio * elapsed_s
        if ratio > _WILDEST_RATIO or elapsed_s <= 0.0:
            if gap_s is not None:
                self._observe_mean(bunch, gap_s)
            return
        if gap_s is not None and 0.5 * usual_s <= gap_s <= 2.0 * usual_s:
            ratio = gap_s / elapsed_s
        for step, each in zip(steps, more, strict=True):
            self._observe(step.decoding, step.prefill_tokens, ratio * (step.elapsed_s or 0.0), more=each)

    def _observe_mean(self, bunch: _Bunch, seconds: float) -> None:
        """As many equal steps: for a linear model that is the same."""
        steps = bunch.steps
        count = len(steps)
        running, usage, pairs = (sum(each) / count for each in zip(*bunch.more, strict=True))
        decoding = round(sum(step.decoding for step in steps) / count)
        prefill_tokens = round(sum(step.prefill_tokens for step in steps) / count)
        self._observe(decoding, prefill_tokens, seconds / count, count=count, more=(round(running), usage, pairs))

    def _observe(
        self,
        decoding: int,
        prefill_tokens: int,
        seconds: float,
        *,
        count: int = 1,
        more: tuple[int, float, float] = (0, 0.0, 0.0),
    ) -> None:
        if decoding or prefill_tokens:
            self._on_timed(TimedStep(decoding, prefill_tokens, seconds, count, *more))
        self._observer.step(decoding=decoding, prefill_tokens=prefill_tokens, seconds=seconds, count=count)


class _Bunch:
    """Steps whose reports came together, after one that had to wait for the same event loop, or a single step.

    `gap_s` is what they took together, None where nobody knows when the first began. `more`: sequences running and
    the share of the KV cache filled as each began, and its `prefill_pairs`.
    """

    def __init__(self, gap_s: float | None) -> None:
        self.gap_s = gap_s
        self.steps: list[Step] = []
        self.more: list[tuple[int, float, float]] = []
