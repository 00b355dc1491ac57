"""What the engine has taught: how long its steps take, how fast sequences finish, how far to trust predictions."""

from __future__ import annotations

import math

from node.routing.lateness import Lateness
from node.routing.profile import StepModel
from node.routing.quantiles import FadingQuantiles
from node.routing.step_fit import StepFit

_FADE_S = 4.0  # long against one step (milliseconds), short against a change of load (tens of seconds)
_FADE_FINISHES = 24.0  # and long enough for so many to finish
_ENOUGH_FINISHES = 4.0
_ENOUGH_TOKENS = 100.0
_START_DOUBT = 0.4
_LEAST_DOUBT = 0.02
_ENOUGH_ANSWERS = 32.0
_DOUBT_HALF_LIFE = 400.0  # answers
_SHORTEST_S = 0.1
_OUTPUT_SHARE_OF_NEW = 0.02


def doubted_s(ttft_s: float, doubt: float) -> float:
    """A predicted TTFT with what it may be exceeded by: seconds.

    The square root of the prediction is the unit. What goes wrong is whether a request makes the step its turn comes
    in, and who comes meanwhile; over a longer wait there are more of either, and they even out in part.
    """
    return ttft_s + doubt * math.sqrt(ttft_s if ttft_s > _SHORTEST_S else _SHORTEST_S)


class EngineObserver:
    """Learns the step model, how fast sequences finish, and how far TTFT predictions are exceeded."""

    def __init__(self) -> None:
        self.lateness = Lateness()
        self._fit = StepFit()
        self._finished = 0.0
        self._sequence_s = 0.0
        self._tokens = 0.0
        self._excess = FadingQuantiles(_DOUBT_HALF_LIFE)
        self._excess_queued = FadingQuantiles(_DOUBT_HALF_LIFE)
        self._mean_output_tokens: float | None = None

    def step(self, *, decoding: int, prefill_tokens: int, seconds: float, count: int) -> None:
        """Take in how long `count` equal steps of `seconds` each took, and what was in them."""
        self._fit.add(decoding, prefill_tokens, seconds)

    def passed(self, *, decoding: int, finished: int, seconds: float, count: int = 1) -> None:
        """Take in what became of `decoding` sequences in `count` steps of `seconds`: `finished` of them ended."""
        if not decoding:
            return
        sequence_s = count * seconds * decoding
        per_s = self._finished / self._sequence_s * decoding if self._sequence_s > 0.0 else 0.0
        memory_s = max(_FADE_S, _FADE_FINISHES / per_s) if per_s > 0.0 else _FADE_S
        keep = math.exp(-count * seconds / memory_s)
        self._finished = self._finished * keep + finished
        self._sequence_s = self._sequence_s * keep + sequence_s
        self._tokens = self._tokens * keep + count * decoding

    def answered(self, output_tokens: int) -> None:
        """Take in how long one answer was."""
        mean = self._mean_output_tokens
        if mean is None:
            self._mean_output_tokens = float(output_tokens)
        else:
            self._mean_output_tokens = mean + _OUTPUT_SHARE_OF_NEW * (output_tokens - mean)

    def began(self, *, predicted_s: float, took_s: float, queued: bool) -> None:
        """Take in a first token: when it was predicted, and when it came, both from the moment of the prediction.

        `queued`: the prediction was made for a request that went on to wait in the node's queue.
        """
        excess = max(0.0, took_s - predicted_s) / math.sqrt(max(_SHORTEST_S, predicted_s))
        (self._excess_queued if queued else self._excess).add(excess)

    @property
    def step_model(self) -> StepModel | None:
        """The learned step model, None while cold."""
        return self._fit.model

    @property
    def ttft_doubt(self) -> float:
        """For `doubted_s`, to get a TTFT that is exceeded as seldom as the lateness so far asks for."""
        return self._doubt(self._excess)

    @property
    def queue_doubt(self) -> float:
        """The same for those that waited in the node's queue, from when they were first told to, or told to stay."""
        return self._doubt(self._excess_queued)

    @property
    def tpot_s(self) -> float | None:
        """Seconds from one token of a running sequence to its next, lately, prompts beside it included."""
        return self._sequence_s / self._tokens if self._tokens >= _ENOUGH_TOKENS else None

    def sequences_per_s(self, running: int) -> float | None:
        """Sequences finishing per second with `running` of them: at the rate of late, else by the mean answer."""
        if self._finished >= _ENOUGH_FINISHES:
            return running * self._finished / self._sequence_s
        if self._mean_output_tokens is None or self._fit.model is None or running == 0:
            return None
        return running / (self._mean_output_tokens * self._fit.model.step_s(running, 0))

    def _doubt(self, excess: FadingQuantiles) -> float:
        found = excess.quantile(self.lateness.here_share)
        if found is None:
            return _START_DOUBT
        known = min(1.0, excess.weight / _ENOUGH_ANSWERS)
        return (1.0 - known) * _START_DOUBT + known * max(_LEAST_DOUBT, found)
