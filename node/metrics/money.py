"""The node's budget and the ledger behind it, as last looked at, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.money import NANO_PER_USD, Budget
from node.spending import Spending


class WrittenLedger(Protocol):
    """What is read of the ledger: `node.store.ledger.SqlLedger`."""

    forgotten: int

    @property
    def is_down(self) -> bool:
        """Whether it cannot be written to."""

    @property
    def kept(self) -> int:
        """How many rows wait in memory to be written."""


class MoneyMetrics(Collector):
    """`spending` gives what was last read, None where that is not known; `budget` the limits in force."""

    def __init__(
        self, ledger: WrittenLedger, spending: Callable[[], Spending | None], budget: Callable[[], Budget]
    ) -> None:
        self._ledger = ledger
        self._spending = spending
        self._budget = budget

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        ledger = self._ledger
        yield GaugeMetricFamily(
            "spillway_ledger_available",
            "1 while the ledger can be written. While it cannot, nothing that costs money leaves.",
            value=float(not ledger.is_down),
        )
        yield GaugeMetricFamily(
            "spillway_ledger_unwritten_rows", "Rows in memory that the ledger did not take yet.", value=ledger.kept
        )
        yield CounterMetricFamily(
            "spillway_ledger_lost_rows",
            "Rows about work that was free, forgotten because the ledger was away for too long.",
            value=ledger.forgotten,
        )
        limit = GaugeMetricFamily(
            "spillway_budget_limit_usd",
            "What the node may spend per UTC hour, day and month; nothing where there is no limit.",
            labels=["window"],
        )
        budget = self._budget()
        limits = {"hour": budget.hour_nano_usd, "day": budget.day_nano_usd, "month": budget.month_nano_usd}
        for window, nano_usd in limits.items():
            if nano_usd is not None:
                limit.add_metric([window], nano_usd / NANO_PER_USD)
        yield limit
        spent = GaugeMetricFamily(
            "spillway_budget_spent_usd",
            "What counts against the node's budget in the present UTC hour, day and month: all nodes of this database, "
            "with what is reserved for calls that are out. A few seconds old; nothing while the ledger cannot be read.",
            labels=["window"],
        )
        orphans = GaugeMetricFamily(
            "spillway_ledger_orphaned_calls",
            "Calls that were out when a node ended: they count at their worst case until they are reconciled.",
        )
        worth = GaugeMetricFamily("spillway_ledger_orphaned_usd", "What those calls count for, in dollars.")
        if (known := self._spending()) is not None:
            for window, nano_usd in known.nano_usd.items():
                spent.add_metric([window], nano_usd / NANO_PER_USD)
            orphans.add_metric([], known.orphaned)
            worth.add_metric([], known.orphaned_nano_usd / NANO_PER_USD)
        yield from (spent, orphans, worth)
