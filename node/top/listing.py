"""The list of decisions: which of them are in it, which one is chosen, and which part of it is to be seen."""

from __future__ import annotations

from collections.abc import Sequence

from node.dashboard.feed import MOST_FOUND, DecisionRow, Decisions, Tick
from node.top.figures import clock, count
from node.top.filter import Filter
from node.top.seen import Seen, joined


class Listing:
    """All of the last decisions, or those that a filter finds. The newest one is chosen until another one is."""

    def __init__(self) -> None:
        self.filter = Filter()
        self.chosen: str | None = None
        self._found: list[DecisionRow] = []
        self._searched: int | None = None
        self._unseen = 0
        self._first = 0

    def look_for(self, wanted: Filter, seen: Seen) -> None:
        """Filter what has been seen; the node remembers more, and its `answer` is to follow."""
        self.filter, self.chosen, self._searched, self._unseen = wanted, None, None, 0
        self._found = [] if wanted.empty else [row for row in seen.rows if wanted.matches(row)]

    def answer(self, found: Decisions) -> None:
        """What the node found for the filter."""
        self._found, self._searched, self._unseen = list(found.decisions), found.searched, 0

    def add(self, tick: Tick) -> None:
        """Decisions of this second; those that the tick had no room for are not looked through."""
        if not self.filter.empty:
            fresh = [row for row in tick.decisions if self.filter.matches(row)]
            self._found = joined(fresh, self._found, MOST_FOUND)
            self._unseen += tick.skipped

    def rows(self, seen: Seen, held: Seen | None) -> list[DecisionRow]:
        """Newest first; `held` is how all stood when the screen was held."""
        if held is not None:
            return [row for row in held.rows if self.filter.matches(row)]
        return seen.rows if self.filter.empty else self._found

    def at(self, rows: Sequence[DecisionRow]) -> int:
        """Where in `rows` the chosen one is by now."""
        return next((at for at, each in enumerate(rows) if each.request_id == self.chosen), 0)

    def move(self, by: int, rows: Sequence[DecisionRow]) -> None:
        """Choose another one, `by` further down."""
        at = max(0, min(len(rows) - 1, self.at(rows) + by))
        self.chosen = rows[at].request_id if rows and at else None

    def first(self, rows: Sequence[DecisionRow], room: int) -> int:
        """The topmost to be seen, so that the chosen one is among the `room` that are, and little moves."""
        at = self.at(rows)
        self._first = min(max(self._first, at - room + 1), at, max(0, len(rows) - room))
        return self._first

    def note(self, rows: Sequence[DecisionRow], seen: Seen, held: Seen | None) -> str:
        """What the list is of, and how many it would have had more."""
        missing = (held or seen).missing
        left_out = f", {count(missing)} left out" if missing else ""
        if self.filter.empty:
            return f"{'newest first' if held is None else f'as of {clock(held.at_s)}'}{left_out}"
        if held is not None:  # only what is held was looked through
            return f"{self.filter}: {len(rows)} as of {clock(held.at_s)}{left_out}, esc: all"
        of = "" if self._searched is None else f" of the last {count(self._searched)}"
        more = " or more" if len(rows) == MOST_FOUND else ""
        since = f", {count(self._unseen)} since unseen" if self._unseen else ""
        return f"{self.filter}: {len(rows)}{more}{of}{since}, esc: all"
