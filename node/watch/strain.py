"""How short the machine is of memory and file descriptors, and how many requests the node holds meanwhile. Pure.

Of each resource a reserve is kept: the smaller of a share of its limit and a fixed amount. Its depth is 0 where the
free part is as large as the reserve, 1 where half of that is left, and negative above; the deepest resource counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

_RESERVE_SHARE = 0.15
# How far back a depth has to come before the level steps down: what is freed by refusing is taken again at once.
_SLACK = 0.25


class Level(StrEnum):
    """What the shortage asks for."""

    CALM = "calm"
    STRAINED = "strained"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One bounded thing of this process or its container, in its own unit. `reserve` caps what is kept free of it."""

    name: str
    used: int
    limit: int
    reserve: int

    @property
    def depth(self) -> float:
        """How far its reserve is used up: 0 not yet, 1 half of it."""
        kept = max(1.0, min(self.limit * _RESERVE_SHARE, self.reserve))
        return 2 * (kept - (self.limit - self.used)) / kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Strain:
    """What follows. `most_inside` is how many requests may be held at once, None for as many as come.

    `scarce` names the resource that is short, None while none is.
    """

    level: Level = Level.CALM
    most_inside: int | None = None
    scarce: str | None = None


class StrainControl:
    """From one sample to the next. Strained, the node holds fewer requests the deeper it gets; exhausted, none.

    With nobody inside there is nothing to be gained by refusing, so one is let in at a time: memory that does not come
    back (an allocator keeps it) must not close the node for ever.
    """

    def __init__(self) -> None:
        self.strain = Strain()
        self._base = 0

    def take(self, resources: Iterable[Resource], inside: int) -> Strain:
        """Take in a sample; `inside` requests are held at this moment. Resources that are not known are left out."""
        deepest = max(resources, key=lambda each: each.depth, default=None)
        level = Level.CALM if deepest is None else self._next(deepest.depth)
        if level is Level.CALM or deepest is None:
            self.strain = Strain()
            return self.strain
        if self.strain.level is Level.CALM:
            self._base = max(1, inside)
        most = math.floor(self._base * (1 - max(0.0, deepest.depth))) if level is Level.STRAINED else 0
        if level is Level.STRAINED or inside == 0:
            most = max(1, most)
        self.strain = Strain(level=level, most_inside=most, scarce=deepest.name)
        return self.strain

    def _next(self, depth: float) -> Level:
        now = self.strain.level
        if depth >= 1 or (now is Level.EXHAUSTED and depth >= 1 - _SLACK):
            return Level.EXHAUSTED
        if depth >= 0 or (now is not Level.CALM and depth >= -_SLACK):
            return Level.STRAINED
        return Level.CALM
