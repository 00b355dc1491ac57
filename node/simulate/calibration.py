"""From the steps of a driven engine to its step model, and to the figures that say how well it describes them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from node.errors import SettingsError
from node.local.stats import TimedStep
from node.routing.profile import StepModel
from node.routing.step_fit import StepFit

_PASSES = 20
# Huber's constant: 95 % of the efficiency of least squares where errors are normal (Huber 1964).
_HUBER = 1.345
_MAD_TO_DEVIATION = 1.4826
_DESCENTS = 2000
_NEAR = 0.1  # steps with this much more or fewer sequences than asked for still say how long one with so many takes
_LIKE = 0.25  # and those whose sequences are this much longer or shorter than usual
_SLOWER = 0.95  # of the most tokens per second: what a larger batch costs before it is worth telling
_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class Cache:
    """The KV cache of the engine that was driven: what it holds, and the blocks in which it is given out."""

    tokens: int
    block_tokens: int = 1

    def held(self, step: TimedStep) -> float:
        """Tokens in it as `step` began: of each sequence's last block, half is taken to be empty."""
        used = step.kv_cache_usage * self.tokens
        return max(0.0, used - step.running * (self.block_tokens - 1) / 2)


@dataclass(frozen=True, slots=True)
class Fit:
    """A step model with what it was fitted to. `median_error` is relative: |predicted - measured| / measured."""

    model: StepModel
    steps: int
    median_error: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen, beside any model. None where no step showed it.

    `step_s` is the median step that only decodes, by sequences (of about the usual length, where that is known);
    `prefill_tokens_per_s` is that of steps full of prompts, `peak_tokens_per_s` the most output tokens in a second.
    """

    step_s: dict[int, float | None]
    prefill_tokens_per_s: float | None
    peak_tokens_per_s: float | None

    @property
    def tokens_per_s(self) -> dict[int, float]:
        """Output tokens per second of steps that only decode, by sequences."""
        return {count: count / seconds for count, seconds in self.step_s.items() if seconds}

    @property
    def fastest(self) -> int | None:
        """How many sequences at once give the most tokens per second, if all of them at once give noticeably fewer."""
        rates = self.tokens_per_s
        if not rates:
            return None
        best = max(rates, key=lambda count: rates[count])
        return best if rates[max(rates)] < _SLOWER * rates[best] else None


def fit(steps: Sequence[TimedStep], cache: Cache | None = None) -> Fit:
    """The step model of all `steps`, each counting alike but the outliers: the further out, the less they count.

    With `cache`, what a step costs for each token held in it is told apart from what it costs for each sequence.

    Iteratively reweighted least squares of the relative error with Huber's weights, started from what `StepFit` makes
    of them. The weights come from the model, not from the measurement: with those, whatever was measured too short
    would count for more, and the model would be too fast. No coefficient is negative. Raises `SettingsError` when the
    steps do not tell the terms apart.
    """
    shuffled = list(steps)
    random.Random(0).shuffle(shuffled)  # StepFit forgets; shuffled, it forgets a bit of everything
    start = StepFit()
    for step in shuffled:
        start.add(step.decoding, step.prefill_tokens, step.seconds)
    model = start.model
    if model is None:
        raise SettingsError(f"calibrate: {len(shuffled)} steps are too few to learn from; give more --seconds")
    held = [cache.held(step) if cache else 0.0 for step in shuffled]
    for _ in range(_PASSES):
        model = _reweighted(model, shuffled, held)
    errors = [
        abs(_step_s(model, step, kv_tokens) / step.seconds - 1.0)
        for step, kv_tokens in zip(shuffled, held, strict=True)
        if step.seconds > 0
    ]
    return Fit(model, sum(step.count for step in shuffled), statistics.median(errors))


def measure(
    steps: Sequence[TimedStep], sequences: Sequence[int], cache: Cache | None = None, usual_tokens: float = 0.0
) -> Measured:
    """What `steps`, in the order in which they ran, show for each of the `sequences`.

    With `cache`, only steps whose sequences hold about `usual_tokens` each say how long one with so many takes.
    """

    def like(step: TimedStep) -> bool:
        return cache is None or abs(cache.held(step) / max(1, step.decoding) - usual_tokens) <= _LIKE * usual_tokens

    by_sequences: dict[int, float | None] = {}
    for wanted in sequences:
        seconds = [
            step.seconds
            for step in steps
            if not step.prefill_tokens
            and abs(step.decoding - wanted) <= (_NEAR * wanted if wanted > 1 else 0)
            and like(step)
        ]
        by_sequences[wanted] = statistics.median(seconds) if seconds else None
    most = max((step.prefill_tokens for step in steps), default=0)
    full = [step for step in steps if step.prefill_tokens and 2 * step.prefill_tokens >= most]
    prefill_s = sum(step.seconds * step.count for step in full)
    return Measured(
        by_sequences,
        sum(step.prefill_tokens * step.count for step in full) / prefill_s if prefill_s else None,
        _peak(steps),
    )


def _peak(steps: Sequence[TimedStep]) -> float | None:
    best: float | None = None
    tokens, seconds = 0, 0.0
    for step in steps:
        tokens += step.decoding * step.count
        seconds += step.seconds * step.count
        if seconds >= _WINDOW_S:
            best = max(best or 0.0, tokens / seconds)
            tokens, seconds = 0, 0.0
    return best


def _step_s(model: StepModel, step: TimedStep, kv_tokens: float) -> float:
    return model.step_s(step.decoding, step.prefill_tokens, kv_tokens, step.prefill_pairs)


def _reweighted(model: StepModel, steps: Sequence[TimedStep], held: Sequence[float]) -> StepModel:
    predicted = [_step_s(model, step, kv_tokens) for step, kv_tokens in zip(steps, held, strict=True)]
    errors = [step.seconds / expected_s - 1.0 for step, expected_s in zip(steps, predicted, strict=True)]
    bound = _HUBER * _MAD_TO_DEVIATION * statistics.median(map(abs, errors)) + 1e-9
    start = (
        model.base_s,
        model.per_decode_s,
        model.per_prefill_token_s,
        model.per_kv_token_s,
        model.per_prefill_pair_s,
    )
    terms = range(len(start))
    moments = [[0.0 for _ in terms] for _ in terms]
    targets = [0.0 for _ in terms]
    for step, tokens, expected_s, error in zip(steps, held, predicted, errors, strict=True):
        weight = step.count * min(1.0, bound / max(abs(error), 1e-12)) / (expected_s * expected_s)
        row = (1.0, float(step.decoding), float(step.prefill_tokens), tokens, step.prefill_pairs)
        for i in terms:
            targets[i] += weight * row[i] * step.seconds
            for j in terms:
                moments[i][j] += weight * row[i] * row[j]
    base_s, per_decode_s, per_prefill_token_s, per_kv_token_s, per_prefill_pair_s = _least(moments, targets, start)
    return StepModel(
        base_s=max(base_s, 1e-6),
        per_decode_s=per_decode_s,
        per_prefill_token_s=per_prefill_token_s,
        per_kv_token_s=per_kv_token_s,
        per_prefill_pair_s=per_prefill_pair_s,
    )


def _least(moments: list[list[float]], targets: list[float], start: Sequence[float]) -> list[float]:
    """Non-negative least squares by coordinate descent, which for so small and convex a problem always gets there."""
    found = list(start)
    terms = range(len(found))
    for _ in range(_DESCENTS):
        for i in terms:
            if moments[i][i] > 0.0:
                others = sum(moments[i][j] * found[j] for j in terms if j != i)
                found[i] = max(0.0, (targets[i] - others) / moments[i][i])
    return found
