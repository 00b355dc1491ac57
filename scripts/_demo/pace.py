"""How many requests a second the engine takes, as it shows in its own load while the day goes on. Pure.

On a small machine that is less in a burst than in a quiet moment: clients, node and clouds take of the same cores.
"""

_TRUST = 0.15  # of a second in which the engine was full, in the mean
_MORE = 1.1  # a second, while it takes more than was thought
_OVERLOAD = 1.3
_LEAST_PER_S, _MOST_PER_S = 0.5, 150.0


class Pace:
    """Begins with what a short measurement said."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s

    def second(self, *, local_per_s: float, queued: int, ready: bool, wanted: float) -> None:
        """Takes in one second: what the engine ended, how many waited, and what was to arrive, in times of `per_s`."""
        if not ready:
            return
        if queued:
            self.per_s += (local_per_s - self.per_s) * _TRUST
        elif wanted > _OVERLOAD:
            self.per_s *= _MORE  # it should be too much, and nobody waits
        self.per_s = min(max(self.per_s, _LEAST_PER_S), _MOST_PER_S)
