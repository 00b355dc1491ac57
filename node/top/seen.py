"""What has been seen of the node so far: figures, decisions, and how the feed stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from node.dashboard.feed import HISTORY_S, DecisionRow, Hello, Now, Point, Tick

KEPT_ROWS: Final = 500


class Kind(StrEnum):
    """Why there are no figures."""

    ABSENT = "absent"  # nobody answers there
    LOST = "lost"  # the feed broke off, or fell silent
    BYE = "bye"  # the node said that it ends
    LOCKED = "locked"  # 401 or 403
    BUSY = "busy"  # too many viewers, or a node that is short of something
    FOREIGN = "foreign"  # somebody answers, but not with a feed
    VERSION = "version"  # a feed that this program does not read


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why there are no figures, in a sentence, and what to do about it."""

    kind: Kind
    said: str
    advice: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Seen:
    """Everything on the screen is drawn from this.

    `rows` are the last decisions, newest first; `gaps` are the moments at which a second had more than were told, and
    how many more. `trouble` is None while the feed comes; before the first try it is None
    too, and so is `hello`. `retry_at_s` is when the next try is due, on the clock that `app` uses.
    """

    url: str
    hello: Hello | None = None
    now: Now | None = None
    points: deque[Point] = field(default_factory=deque)
    rows: list[DecisionRow] = field(default_factory=list)
    gaps: list[tuple[float, int]] = field(default_factory=list)
    trouble: Trouble | None = None
    retry_at_s: float | None = None

    @property
    def live(self) -> bool:
        """Whether figures come at the moment."""
        return self.hello is not None and self.trouble is None

    @property
    def at_s(self) -> float | None:
        """The moment that the figures are of, by the node's clock."""
        if self.points:
            return self.points[-1].at_s
        return None if self.hello is None or self.now is None else self.hello.started_s + self.now.uptime_s

    @property
    def missing(self) -> int:
        """How many decisions are not in `rows`, though they are as new as the oldest one there."""
        return sum(skipped for _, skipped in self.gaps)

    def held(self) -> Seen:
        """As it is now, whatever comes."""
        return replace(self, points=deque(self.points), rows=list(self.rows), gaps=list(self.gaps))

    def begin(self, hello: Hello) -> None:
        """The feed has begun, for the first time or anew. Another node's decisions are not this one's."""
        if self.hello is not None and self.hello.started_s != hello.started_s:
            self.rows, self.gaps = [], []
        self.hello, self.now, self.trouble, self.retry_at_s = hello, hello.now, None, None
        self.points = deque(hello.history, maxlen=round(HISTORY_S / hello.interval_s))
        self.rows = joined(hello.decisions, self.rows)

    def go_on(self, tick: Tick) -> None:
        """One second more."""
        self.now = tick.now
        self.points.append(tick.point)
        self.rows = joined(tick.decisions, self.rows)
        if tick.skipped:
            self.gaps.append((tick.point.at_s, tick.skipped))
        self.gaps = [each for each in self.gaps if self.rows and each[0] >= self.rows[-1].at_s]

    def stop(self, trouble: Trouble, retry_at_s: float) -> None:
        """No figures for now; what was seen stays."""
        self.trouble, self.retry_at_s = trouble, retry_at_s


def joined(fresh: Sequence[DecisionRow], rows: list[DecisionRow], most: int = KEPT_ROWS) -> list[DecisionRow]:
    """`fresh` before `rows`, each request once: the first tick, or a search, may bring some a second time."""
    if not fresh:
        return rows
    known = {row.request_id for row in rows}
    return [*(row for row in fresh if row.request_id not in known), *rows][:most]
