"""What all callers together have spent in the windows of now, and what nobody knows the end of: cheap, asked often."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, case, func, select

from node.money import Budget
from node.store.schema import IS_ORPHANED, calls, spend
from node.store.windows import hour_of, windows

_ALL_WINDOWS = Budget(hour_nano_usd=0, day_nano_usd=0, month_nano_usd=0)


def spent_in_windows(connection: Connection, now_us: int) -> dict[str, int]:
    """Nano-dollars per window (``hour``, ``day``, ``month``), counted as budgets count: reservations included."""
    first_hours = {name: first_hour for name, first_hour, _ in windows(_ALL_WINDOWS, hour_of(now_us))}
    sums = [
        func.coalesce(func.sum(case((spend.c.hour >= first_hour, spend.c.nano_usd), else_=0)), 0).label(name)
        for name, first_hour in first_hours.items()
    ]
    row = connection.execute(select(*sums).where(spend.c.hour >= min(first_hours.values()))).mappings().one()
    return {name: int(row[name]) for name in first_hours}


def orphans(connection: Connection) -> tuple[int, int]:
    """How many calls are orphaned, and the nano-dollars that they count for. They have an index of their own."""
    row = connection.execute(orphans_query()).one()
    return int(row[0]), int(row[1])


def orphans_query() -> Select[Any]:
    """The query of `orphans`."""
    return select(func.count(), func.coalesce(func.sum(calls.c.charged_nano_usd), 0)).where(IS_ORPHANED)
