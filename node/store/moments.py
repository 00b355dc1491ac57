"""Moments as people write them: a day, a time, or how long ago; as UTC microseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

from node.errors import InvalidRequest

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AGO: Final = re.compile(r"(\d{1,6})([hdw])")
_UNIT_US: Final = {"h": HOUR_US, "d": DAY_US, "w": 7 * DAY_US}


def since_us(text: str, now_us: int) -> int:
    """Where a period begins: `2026-11-01` (its first moment), `2026-11-01T13:00`, `24h`, `7d`, `2w` (so long ago).

    A time without a zone is UTC. Raises `InvalidRequest`.
    """
    return _moment_us("since", text, now_us)


def until_us(text: str, now_us: int) -> int:
    """Where a period ends, itself not included; a day alone is included to its end. Raises `InvalidRequest`."""
    moment_us = _moment_us("until", text, now_us)
    return moment_us + DAY_US if is_day(text) else moment_us


def moment_of(us: int) -> datetime:
    """The moment in UTC."""
    return _EPOCH + timedelta(microseconds=us)


def us_of(moment: datetime) -> int:
    """Exact microseconds since 1970; a time without a zone is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def day_text(days: int) -> str:
    """Whole days since 1970 as `2026-11-29`."""
    return (date(1970, 1, 1) + timedelta(days=days)).isoformat()


def _moment_us(name: str, text: str, now_us: int) -> int:
    text = text.strip()
    if (ago := _AGO.fullmatch(text)) is not None:
        return now_us - int(ago[1]) * _UNIT_US[ago[2]]
    try:
        return us_of(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{name}: expected a day (2026-11-29), a UTC time (2026-11-29T13:00) or how long ago (24h, 7d, 2w), "
            f"got {text[:40]!r}",
            param=name,
        ) from None


def is_day(text: str) -> bool:
    """Whether it is a day alone."""
    try:
        date.fromisoformat(text.strip())
    except ValueError:
        return False
    return True
