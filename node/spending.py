"""What the node has spent in the present hour, day and month, read from the ledger every few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from node.background import Background
from node.dashboard.feed import BudgetWindow
from node.money import Budget
from node.store.database import Database, StoreUnavailable
from node.store.spent import orphans, spent_in_windows
from node.store.windows import hour_of, seconds_until_next, windows

_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Spending:
    """Nano-dollars by window, reservations included, and what is out for ever: see `node.store.schema.State`."""

    nano_usd: Mapping[str, int]
    orphaned: int
    orphaned_nano_usd: int


class SpendingWatch(Background):
    """Reads `database` every `interval_s` in a thread. `now_us` is the wall clock.

    `latest` is None before the first time, and while it cannot be read.
    """

    task_name = "spending-watch"

    def __init__(self, database: Database, now_us: Callable[[], int], *, interval_s: float = _INTERVAL_S) -> None:
        self._database = database
        self._now_us = now_us
        self._interval_s = interval_s
        self.latest: Spending | None = None

    def read(self) -> Spending | None:
        """What the database says now. Blocks, and may be called in any thread."""
        try:
            with self._database.reading() as connection:
                number, worth = orphans(connection)
                return Spending(spent_in_windows(connection, self._now_us()), number, worth)
        except StoreUnavailable:
            return None

    def left(self, budget: Budget) -> tuple[BudgetWindow, ...] | None:
        """How each window that `budget` limits stands, as of the last time; None while that is not known."""
        now_us = self._now_us()
        limited = list(windows(budget, hour_of(now_us)))
        if not limited:
            return ()
        if self.latest is None:
            return None
        return tuple(
            BudgetWindow(
                window=name,
                limit_nano_usd=limit_nano_usd,
                spent_nano_usd=self.latest.nano_usd[name],
                ends_in_s=seconds_until_next(name, now_us),
            )
            for name, _, limit_nano_usd in limited
        )

    async def _run(self) -> None:
        while True:
            self.latest = await asyncio.to_thread(self.read)
            await asyncio.sleep(self._interval_s)
