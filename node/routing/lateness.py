"""How many promises may still be broken, and so how sure of a request's first token one has to be.

A promise is broken here, where a prediction was exceeded, or in the cloud, where the provider was slow. Both have their
allowance, a share of all requests that could have left: whoever breaks fewer is over-cautious, and that is paid for.
"""

from __future__ import annotations

_HERE_TARGET = 0.003
_CLOUD_TARGET = 0.002
_CAUTION_STEP = 0.4
# The share of predictions that may be exceeded, as a power of ten: one in 100, one in 3, one in 300.
_START_CAUTION, _LEAST_CAUTION, _MOST_CAUTION = 2.0, 0.5, 2.5
_START_ALLOWANCE, _MOST_ALLOWANCE = 0.5, 6.0  # late answers of the cloud: what one burst may use up
_SPREAD_OVER = 20.0  # requests that leave share what allowance there is
_LEAST_LATE, _MOST_LATE = 0.002, 0.25


class Lateness:
    """Of one model's requests that may leave."""

    def __init__(self) -> None:
        self._caution = _START_CAUTION
        self._allowance = _START_ALLOWANCE

    def promised(self, *, kept: bool, here: bool) -> None:
        """Take in whether a request had its first token in time. `here`: it was to be served here, even if in the end
        the cloud had to.

        The caution follows, between its bounds: a little less after each that was in time, much more after each that
        was late here, so that the share of those settles at `_HERE_TARGET`.
        """
        late_here = here and not kept
        step = _CAUTION_STEP * (1.0 - _HERE_TARGET if late_here else -_HERE_TARGET)
        self._caution = min(_MOST_CAUTION, max(_LEAST_CAUTION, self._caution + step))
        self._allowance = min(_MOST_ALLOWANCE, self._allowance + _CLOUD_TARGET)

    def leaves(self) -> None:
        """A request leaves now, at its last safe moment: with the chance of being late that `cloud_share` gives it.

        That is charged at once. Lateness shows seconds later, when a burst has already left.
        """
        self._allowance -= 1.0 - self.cloud_share

    @property
    def here_share(self) -> float:
        """The share of predictions that a cautious one must not be below of."""
        return float(1.0 - 10.0**-self._caution)

    @property
    def cloud_share(self) -> float:
        """The share of the cloud's first tokens that the last safe moment leaves time for."""
        return 1.0 - min(_MOST_LATE, max(_LEAST_LATE, self._allowance / _SPREAD_OVER))
