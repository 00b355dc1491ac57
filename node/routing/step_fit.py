"""The step model, learned while the engine works: least squares over recent steps, deaf to outliers, never negative."""

from __future__ import annotations

from itertools import combinations

from node.routing.profile import StepModel

_HALF_LIFE_STEPS = 2000.0
_KEEP = 0.5 ** (1.0 / _HALF_LIFE_STEPS)
_LEAST_STEPS = 8
_REFIT_EVERY = 32
_OUTLIER = 4.0  # a step this many times its prediction was stopped by something else, and counts as just that
_TERMS = 3

Row = list[float]


class StepFit:
    """Step seconds ≈ base + per_decode · decoding + per_prefill_token · prefill tokens, fitted online.

    Exponentially fading least squares on the normal equations, each step weighted by 1/seconds² so that the error that
    is made small is the relative one; all coefficients at least 0 (the best of all subsets of terms, of which there
    are seven). A step far longer than predicted is taken as `_OUTLIER` times its prediction.
    """

    def __init__(self) -> None:
        self._moments = [[0.0] * _TERMS for _ in range(_TERMS)]
        self._targets = [0.0] * _TERMS
        self._steps = 0
        self._model: StepModel | None = None
        self._saw_prefill = False

    def add(self, decoding: int, prefill_tokens: int, seconds: float) -> None:
        """Take in one step that took `seconds`."""
        if seconds <= 0.0 or (decoding == 0 and prefill_tokens == 0):
            return
        if self._model is not None:
            seconds = min(seconds, _OUTLIER * self._model.step_s(decoding, prefill_tokens))
        row = (1.0 / seconds, decoding / seconds, prefill_tokens / seconds)
        for i in range(_TERMS):
            moments = self._moments[i]
            for j in range(_TERMS):
                moments[j] = moments[j] * _KEEP + row[i] * row[j]
            self._targets[i] = self._targets[i] * _KEEP + row[i]
        self._steps += 1
        self._saw_prefill = self._saw_prefill or prefill_tokens > 0
        if self._steps >= _LEAST_STEPS and (self._steps % _REFIT_EVERY == 0 or self._model is None):
            self._model = self._solve()

    @property
    def model(self) -> StepModel | None:
        """The fit so far, or None before enough steps, or before the first prompt."""
        return self._model if self._saw_prefill else None

    def _solve(self) -> StepModel | None:
        best: tuple[float, Row] | None = None
        for size in range(1, _TERMS + 1):
            for terms in combinations(range(_TERMS), size):
                values = _solved(
                    [[self._moments[i][j] for j in terms] for i in terms], [self._targets[i] for i in terms]
                )
                if values is None or min(values) < 0.0:
                    continue
                gain = sum(value * self._targets[term] for value, term in zip(values, terms, strict=True))
                if best is None or gain > best[0] * (1 + 1e-9):
                    full = [0.0] * _TERMS
                    for value, term in zip(values, terms, strict=True):
                        full[term] = value
                    best = (gain, full)
        if best is None:
            return None
        base, per_decode, per_prefill = best[1]
        return StepModel(base_s=max(base, 1e-6), per_decode_s=per_decode, per_prefill_token_s=per_prefill)


def _solved(matrix: list[Row], target: Row) -> Row | None:
    """Gaussian elimination with pivoting; None for a matrix too close to singular."""
    size = len(target)
    rows = [[*row, value] for row, value in zip(matrix, target, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda index: abs(rows[index][column]))
        if abs(rows[pivot][column]) <= 1e-12 * max(abs(value) for value in matrix[column]):
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for index in range(column + 1, size):
            factor = rows[index][column] / rows[column][column]
            for each in range(column, size + 1):
                rows[index][each] -= factor * rows[column][each]
    values = [0.0] * size
    for index in reversed(range(size)):
        known = sum(rows[index][each] * values[each] for each in range(index + 1, size))
        values[index] = (rows[index][size] - known) / rows[index][index]
    return values
