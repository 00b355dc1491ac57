"""What an engine's own steps and first tokens say about it: the learned half of `EngineLoad`. Values in, values out.

How far a prediction is exceeded is a distribution; how cautiously it is read (the quantile that becomes the slack)
follows the share of requests that were late, so that this share settles at the one promised.
"""

from __future__ import annotations

import math

from node.routing.profile import StepModel
from node.routing.quantiles import FadingQuantiles
from node.routing.step_fit import StepFit

_FADE_S = 4.0  # long against one step (milliseconds), short against a change of load (tens of seconds)
_FADE_FINISHES = 24.0  # and long enough for so many to finish
_START_SLACK_S = 0.4
_LATE_TARGET = 0.004
_CAUTION_STEP = 0.15
# The share of predictions that the slack does not cover, as a power of ten: one in 100, one in 5, one in 300.
_START_CAUTION, _LEAST_CAUTION, _MOST_CAUTION = 2.0, 0.7, 2.5
_LEAST_SLACK_S = 0.02
_ENOUGH_ANSWERS = 32.0
_SLACK_HALF_LIFE = 400.0  # answers
_OUTPUT_SHARE_OF_NEW = 0.02


class EngineObserver:
    """Learns the step model, how fast sequences finish, and how far TTFT predictions are exceeded."""

    def __init__(self) -> None:
        self._fit = StepFit()
        self._finished = 0.0
        self._full_s = 0.0
        self._excess = FadingQuantiles(_SLACK_HALF_LIFE)
        self._excess_queued = FadingQuantiles(_SLACK_HALF_LIFE)
        self._mean_output_tokens: float | None = None
        self._caution = _START_CAUTION

    def step(
        self, *, decoding: int, prefill_tokens: int, seconds: float, count: int, finished: int, full: bool
    ) -> None:
        """Take in `count` equal steps of `seconds` each, in which `finished` sequences ended; `full`: no place free."""
        self._fit.add(decoding, prefill_tokens, seconds)
        if full:
            per_s = self._finished / self._full_s if self._full_s > 0 else 0.0
            memory_s = max(_FADE_S, _FADE_FINISHES / per_s) if per_s > 0 else _FADE_S
            keep = math.exp(-count * seconds / memory_s)
            self._finished = self._finished * keep + finished
            self._full_s = self._full_s * keep + count * seconds

    def answered(self, output_tokens: int) -> None:
        """Take in how long one answer was."""
        mean = self._mean_output_tokens
        if mean is None:
            self._mean_output_tokens = float(output_tokens)
        else:
            self._mean_output_tokens = mean + _OUTPUT_SHARE_OF_NEW * (output_tokens - mean)

    def began(self, excess_s: float, *, queued: bool) -> None:
        """Take in a first token: how much later than predicted it came.

        `queued`: the prediction was made for a request that went on to wait in the node's queue.
        """
        (self._excess_queued if queued else self._excess).add(max(0.0, excess_s))

    @property
    def step_model(self) -> StepModel | None:
        """The learned step model, None while cold."""
        return self._fit.model

    @property
    def ttft_slack_s(self) -> float:
        """Seconds to add to a prediction to get one that is seldom exceeded; how seldom, `promised` decides.

        Seconds, not a share of the prediction: what goes wrong is the length of a step or two that others share.
        """
        return self._slack_s(self._excess)

    @property
    def queue_slack_s(self) -> float:
        """The same for those that waited in the node's queue, from when they were first told to, or told to stay."""
        return self._slack_s(self._excess_queued)

    def promised(self, *, kept: bool) -> None:
        """Take in whether a request that could have left had its first token in time, wherever it was served.

        The caution follows, between its bounds: a little less after each that was in time, much more after each that
        was late, so that the share of late ones settles at `_LATE_TARGET`.
        """
        step = _CAUTION_STEP * (-_LATE_TARGET if kept else 1.0 - _LATE_TARGET)
        self._caution = min(_MOST_CAUTION, max(_LEAST_CAUTION, self._caution + step))

    def _slack_s(self, excess: FadingQuantiles) -> float:
        if excess.weight < _ENOUGH_ANSWERS:
            return _START_SLACK_S
        found = excess.quantile(1.0 - 10.0**-self._caution)
        return _START_SLACK_S if found is None else max(_LEAST_SLACK_S, found)

    def sequences_per_s(self, running: int) -> float | None:
        """Sequences finishing per second with `running` of them: as measured while full, else by the mean answer."""
        if self._full_s > 1.0 and self._finished >= 4.0:
            return self._finished / self._full_s
        if self._mean_output_tokens is None or self._fit.model is None or running == 0:
            return None
        return running / (self._mean_output_tokens * self._fit.model.step_s(running, 0))
