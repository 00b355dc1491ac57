"""From the engine's reports to what routing learns from: how long each step really took. No vLLM here, no clock.

What is learned stays learned over an idle night; what it is learned from are durations, and those are only sound once
late, bunched and stalled reports have been told apart from slow steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.routing.observer import EngineObserver
from node.routing.profile import StepModel

STALL_S = 1.0
# A report this much sooner than its step can have taken has been held up behind the one before it.
_BUNCHED_SHARE = 0.7
_MOST_BUNCHED = 16  # so that an engine that has become faster is believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One scheduler report. `at_s` is when it arrived (monotonic).

    `running` and `waiting` are sequences after the step, `kv_cache_usage` a fraction. `computed` is false for a report
    that came without work. `decoding` sequences and `prefill_tokens` were in this step, `elapsed_s` is the engine's own
    time for it, and `finished` counts sequences that ended in it.
    """

    at_s: float
    running: int
    waiting: int
    kv_cache_usage: float
    computed: bool = True
    decoding: int = 0
    prefill_tokens: int = 0
    elapsed_s: float | None = None
    finished: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """What has been learned by now, as an `EngineLoad` has it."""

    step: StepModel | None
    sequences_per_s: float | None
    ttft_slack_s: float
    queue_slack_s: float


class StepStats:
    """The engine's gauges and what it has taught, fed with every step.

    A step's duration is the time since the previous report when that one left sequences running (with asynchronous
    scheduling the engine's own figure covers only part of a step), else the engine's own figure. A gap that is longer
    than the engine's figure by more than `STALL_S` was no step: a process was stopped, a grammar was compiled. Reports
    that come too soon after one another were held up together, by an event loop that was busy: they are learned as so
    many equal steps, which for a linear model is the same.
    """

    def __init__(self, max_sequences: int) -> None:
        self._max_sequences = max_sequences
        self.running = 0
        self.waiting = 0
        self.kv_cache_usage: float | None = None
        self._last_at_s: float | None = None
        self.forget()

    def forget(self) -> None:
        """Drop what was learned (from first steps, which compile kernels), keep the gauges."""
        self._observer = EngineObserver()
        self._bunch: _Bunch | None = None
        self._rates: Rates | None = None

    def add(self, step: Step) -> None:
        """Take one report in."""
        full = self.waiting > 0 or self.running >= self._max_sequences
        seconds = self._duration_s(step)
        if step.computed and seconds is not None:
            if self._bunch is None or not self._held_up(step, seconds):
                self._learn()
                self._bunch = _Bunch(full, timed=self._is_timed)
            elif not self._bunch.timed:
                seconds = step.elapsed_s or seconds
            self._bunch.add(step, seconds, full=full)
            if step.running == 0:
                self._learn()  # what comes next starts from idle
        self.running, self.waiting, self.kv_cache_usage = step.running, step.waiting, step.kv_cache_usage
        self._last_at_s = step.at_s
        self._rates = None

    def began(self, excess_s: float, *, queued: bool) -> None:
        """Take in a first token: how much later than predicted it came. `queued`: predicted while it waited."""
        self._observer.began(excess_s, queued=queued)
        self._rates = None

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
                observer.ttft_slack_s,
                observer.queue_slack_s,
            )
        return self._rates

    @property
    def _is_timed(self) -> bool:
        """Whether the step reported next began when the last one was reported, and not out of idleness."""
        return self.running > 0 and self._last_at_s is not None

    def _duration_s(self, step: Step) -> float | None:
        if self._last_at_s is None or not self._is_timed:
            return step.elapsed_s
        gap_s = step.at_s - self._last_at_s
        if step.elapsed_s is not None and gap_s - step.elapsed_s > STALL_S:
            return step.elapsed_s
        return gap_s

    def _held_up(self, step: Step, seconds: float) -> bool:
        if self._bunch is None or self._bunch.count >= _MOST_BUNCHED or self.running == 0:
            return False
        model = self._observer.step_model
        expected_s = model.step_s(step.decoding, step.prefill_tokens) if model is not None else 0.0
        return seconds <= _BUNCHED_SHARE * max(expected_s, step.elapsed_s or 0.0)

    def _learn(self) -> None:
        bunch, self._bunch = self._bunch, None
        if bunch is None:
            return
        count = bunch.count
        self._observer.step(
            decoding=round(bunch.decoding / count),
            prefill_tokens=round(bunch.prefill_tokens / count),
            seconds=bunch.seconds / count,
            count=count,
            finished=bunch.finished,
            full=bunch.full,
        )


class _Bunch:
    """Steps whose reports came together, and the one before them that had to wait for the same event loop.

    `timed`: the whole bunch took the time from the report before it. Else, after idling, nobody knows when it began.
    """

    def __init__(self, full: bool, *, timed: bool) -> None:
        self.full = full
        self.timed = timed
        self.count = self.decoding = self.prefill_tokens = self.finished = 0
        self.seconds = 0.0

    def add(self, step: Step, seconds: float, *, full: bool) -> None:
        self.full = self.full and full
        self.count += 1
        self.decoding += step.decoding
        self.prefill_tokens += step.prefill_tokens
        self.finished += step.finished
        self.seconds += seconds
