"""What the engine's own steps say about its speed: values in, rates out. No vLLM here, no clock.

Rates are ratios of sums that fade with busy time, so that a stalled event loop, which bunches step reports together,
does not distort them, and so that an idle night does not erase what was learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Long against one step (milliseconds), short against a change of load (tens of seconds).
FADE_S = 10.0
STALL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One scheduler report. `at_s` is when it arrived (monotonic).

    `running` and `waiting` are sequences after the step, `kv_cache_usage` a fraction. `computed` is false for a report
    that came without work. `prefill_tokens` were computed in this step, `elapsed_s` is the engine's own time for it,
    and `finished` counts sequences that ended in it.
    """

    at_s: float
    running: int
    waiting: int
    kv_cache_usage: float
    computed: bool = True
    prefill_tokens: int = 0
    elapsed_s: float | None = None
    finished: int = 0


class FadingRate:
    """Amount per second over roughly the last `FADE_S` seconds of what is added."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Count `amount` done in `seconds`."""
        keep = math.exp(-seconds / FADE_S)
        self._amount = self._amount * keep + amount
        self._seconds = self._seconds * keep + seconds

    @property
    def per_s(self) -> float | None:
        """The rate, or None while nothing has been counted."""
        if self._amount <= 0.0 or self._seconds <= 0.0:
            return None
        return self._amount / self._seconds


class StepStats:
    """The engine's gauges and measured rates, fed with every step.

    A step's duration is the time since the previous report when that one left sequences running (with asynchronous
    scheduling the engine's own figure covers only part of a step), else the engine's own figure. A gap that is longer
    than the engine's figure by more than `STALL_S` was no step: a process was stopped, a grammar was compiled.
    """

    def __init__(self, max_sequences: int) -> None:
        self._max_sequences = max_sequences
        self.running = 0
        self.waiting = 0
        self.kv_cache_usage: float | None = None
        self.forget_rates()
        self._last_at_s: float | None = None

    def forget_rates(self) -> None:
        """Drop the rates (after a warm-up, whose first steps compile kernels), keep the gauges."""
        self._steps = FadingRate()
        self._prefill = FadingRate()
        self._finishing = FadingRate()

    def add(self, step: Step) -> None:
        """Take one report in."""
        full = self.waiting > 0 or self.running >= self._max_sequences
        seconds = self._duration_s(step)
        if step.computed and seconds is not None:
            self._steps.add(1, seconds)
            if step.prefill_tokens:
                self._prefill.add(step.prefill_tokens, seconds)
            if full:
                self._finishing.add(step.finished, seconds)
        self.running, self.waiting, self.kv_cache_usage = step.running, step.waiting, step.kv_cache_usage
        self._last_at_s = step.at_s

    def _duration_s(self, step: Step) -> float | None:
        if self.running == 0 or self._last_at_s is None:
            return step.elapsed_s
        gap_s = step.at_s - self._last_at_s
        if step.elapsed_s is not None and gap_s - step.elapsed_s > STALL_S:
            return step.elapsed_s
        return gap_s

    @property
    def step_s(self) -> float | None:
        """Mean duration of a step."""
        rate = self._steps.per_s
        return None if rate is None else 1.0 / rate

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens computed per second, over the steps that computed any."""
        return self._prefill.per_s

    @property
    def sequences_per_s(self) -> float | None:
        """Sequences finished per second while the engine was full."""
        return self._finishing.per_s
