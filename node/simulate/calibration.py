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
_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True)
class Fit:
    """A step model with what it was fitted to. `median_error` is relative: |predicted - measured| / measured."""

    model: StepModel
    steps: int
    median_error: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen, beside any model. None where no step showed it.

    `step_s` is the median step that only decodes, by sequences; `prefill_tokens_per_s` is that of steps full of
    prompts, `peak_tokens_per_s` the most output tokens in a second.
    """

    step_s: dict[int, float | None]
    prefill_tokens_per_s: float | None
    peak_tokens_per_s: float | None


def fit(steps: Sequence[TimedStep]) -> Fit:
    """The step model of all `steps`, each counting alike but the outliers: the further out, the less they count.

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
    for _ in range(_PASSES):
        model = _reweighted(model, shuffled)
    errors = [
        abs(model.step_s(step.decoding, step.prefill_tokens) / step.seconds - 1.0)
        for step in shuffled
        if step.seconds > 0
    ]
    return Fit(model, sum(step.count for step in shuffled), statistics.median(errors))


def measure(steps: Sequence[TimedStep], sequences: Sequence[int]) -> Measured:
    """What `steps`, in the order in which they ran, show for each of the `sequences`."""
    by_sequences: dict[int, float | None] = {}
    for wanted in sequences:
        seconds = [
            step.seconds
            for step in steps
            if not step.prefill_tokens and abs(step.decoding - wanted) <= (_NEAR * wanted if wanted > 1 else 0)
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


def _reweighted(model: StepModel, steps: Sequence[TimedStep]) -> StepModel:
    predicted = [model.step_s(step.decoding, step.prefill_tokens) for step in steps]
    errors = [step.seconds / expected_s - 1.0 for step, expected_s in zip(steps, predicted, strict=True)]
    bound = _HUBER * _MAD_TO_DEVIATION * statistics.median(map(abs, errors)) + 1e-9
    moments = [[0.0] * 3 for _ in range(3)]
    targets = [0.0] * 3
    for step, expected_s, error in zip(steps, predicted, errors, strict=True):
        weight = step.count * min(1.0, bound / max(abs(error), 1e-12)) / (expected_s * expected_s)
        row = (1.0, float(step.decoding), float(step.prefill_tokens))
        for i in range(3):
            targets[i] += weight * row[i] * step.seconds
            for j in range(3):
                moments[i][j] += weight * row[i] * row[j]
    found = _least(moments, targets, [model.base_s, model.per_decode_s, model.per_prefill_token_s])
    return StepModel(base_s=max(found[0], 1e-6), per_decode_s=found[1], per_prefill_token_s=found[2])


def _least(moments: list[list[float]], targets: list[float], start: list[float]) -> list[float]:
    """Non-negative least squares by coordinate descent, which for so small and convex a problem always gets there."""
    found = list(start)
    for _ in range(_DESCENTS):
        for i in range(3):
            if moments[i][i] > 0.0:
                others = sum(moments[i][j] * found[j] for j in range(3) if j != i)
                found[i] = max(0.0, (targets[i] - others) / moments[i][i])
    return found
