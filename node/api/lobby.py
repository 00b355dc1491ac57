"""Where connections wait that came when all places were taken: long enough to say that they are a health probe."""

from __future__ import annotations

from typing import ClassVar, Protocol

# Answered however many connections there are: an orchestrator that is refused here would restart a node that is busy.
PROBES = frozenset({b"/livez", b"/readyz"})


class Visitor(Protocol):
    """A connection without a place."""

    def turn_away(self) -> None:
        """Refuse it."""


class Lobby:
    """At most `places` visitors. The one who has been silent longest makes room, so that a newcomer is always heard.

    A probe sends its request with the connection; to be pushed out, `places` others have to come in between.
    """

    MOST_PLACES: ClassVar[int] = 32

    def __init__(self, places: int = MOST_PLACES) -> None:
        self.places = places
        self._waiting: dict[Visitor, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, visitor: Visitor) -> None:
        """Let one in, at another's expense if need be."""
        self._waiting[visitor] = None
        while len(self._waiting) > self.places:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.turn_away()

    def leave(self, visitor: Visitor) -> None:
        """It has said what it wants, or has gone."""
        self._waiting.pop(visitor, None)
