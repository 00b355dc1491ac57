"""Percentiles, medians and ratios over what was measured; no value in, None out."""

import math
import statistics
from collections.abc import Iterable, Sequence


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0 to 100) with linear interpolation between ranks; None when there is no value."""
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {q}")
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are known; None when none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def median_ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median over rounds of ours / theirs. Paired round by round, so that drift of the machine cancels out."""
    pairs = zip(ours, theirs, strict=True)
    return median(a / b if a is not None and b else None for a, b in pairs)


def median_difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median over rounds of ours - theirs, paired like `median_ratio`."""
    pairs = zip(ours, theirs, strict=True)
    return median(a - b if a is not None and b is not None else None for a, b in pairs)
