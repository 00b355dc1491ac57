"""The hours that a budget's window is made of. UTC, calendar-aligned: pure arithmetic on hours since 1970."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from node.money import Budget

US_PER_HOUR = 3_600_000_000
_HOURS_PER_DAY = 24


def hour_of(at_us: int) -> int:
    """The hour since 1970 in which a moment (microseconds since 1970) lies."""
    return at_us // US_PER_HOUR


def windows(budget: Budget, hour: int) -> Iterator[tuple[str, int, int]]:
    """Each limited window that `hour` lies in: its name, its first hour, and what may be spent in it.

    A window has no last hour: what a clock that ran ahead wrote into the future counts as well, so that setting it back
    opens nothing again.
    """
    if budget.hour_nano_usd is not None:
        yield "hour", hour, budget.hour_nano_usd
    if budget.day_nano_usd is not None:
        yield "day", hour - hour % _HOURS_PER_DAY, budget.day_nano_usd
    if budget.month_nano_usd is not None:
        day = datetime.date.fromordinal(_EPOCH_DAY + hour // _HOURS_PER_DAY)
        first = day.replace(day=1).toordinal() - _EPOCH_DAY
        yield "month", first * _HOURS_PER_DAY, budget.month_nano_usd


def seconds_until_next(window: str, at_us: int) -> float:
    """How long the window named ``hour``, ``day`` or ``month`` that `at_us` lies in goes on."""
    hour = hour_of(at_us)
    if window == "hour":
        end = hour + 1
    elif window == "day":
        end = hour - hour % _HOURS_PER_DAY + _HOURS_PER_DAY
    else:
        day = datetime.date.fromordinal(_EPOCH_DAY + hour // _HOURS_PER_DAY)
        following = (day.replace(day=28) + datetime.timedelta(days=4)).replace(day=1)
        end = (following.toordinal() - _EPOCH_DAY) * _HOURS_PER_DAY
    return (end * US_PER_HOUR - at_us) / 1e6


_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
