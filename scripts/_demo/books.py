"""Both sides' books at the end: the node's ledger, and what the clouds themselves billed and heard."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aiohttp

from _demo.day import MAY_LEAVE, STAYS
from _demo.stage import Stage
from node.money import usd_to_nano


@dataclass(frozen=True)
class Account:
    """One provider: what the ledger says was spent there, and what it billed itself. `calls` are those on its bill.

    `ledger_nano_usd` is None where the node is not there to be asked.
    """

    provider: str
    ledger_nano_usd: int | None
    billed_nano_usd: int
    calls: int
    trips: int


@dataclass(frozen=True)
class Bill:
    """One caller's, and what the same answers would have cost all in the cloud."""

    caller: str
    requests: int
    spent_nano_usd: int
    all_cloud_nano_usd: int


@dataclass(frozen=True)
class Books:
    """`stayed_heard` of the prompts that a provider heard were to stay here, `others_heard` were not.

    `estimated` attempts were cut off in the middle, so that nobody told what they used.
    """

    accounts: tuple[Account, ...]
    bills: tuple[Bill, ...]
    stayed_heard: int
    others_heard: int
    estimated: int

    @property
    def apart_nano_usd(self) -> int | None:
        """By how much the two sides differ, provider by provider; None where one of them is not known."""
        apart = 0
        for each in self.accounts:
            if each.ledger_nano_usd is None:
                return None
            apart += abs(each.ledger_nano_usd - each.billed_nano_usd)
        return apart

    @property
    def spent_nano_usd(self) -> int:
        return sum(each.spent_nano_usd for each in self.bills)

    @property
    def all_cloud_nano_usd(self) -> int:
        return sum(each.all_cloud_nano_usd for each in self.bills)


async def read_books(stage: Stage, session: aiohttp.ClientSession, since_unix_s: float) -> Books:
    """Both sides', once the node is at rest. The callers' bills are of the day alone, which began at `since_unix_s`."""
    since = datetime.fromtimestamp(since_unix_s, UTC).replace(tzinfo=None).isoformat()
    by_backend = await stage.admin(session, "/admin/usage?by=backend")
    by_key = await stage.admin(session, f"/admin/usage?by=key&since={since}")
    spent = {line["backend"]: usd_to_nano(Decimal(line["spent_usd"])) for line in by_backend["lines"]}
    return replace(
        _books_of_the_clouds(stage, {name: spent.get(name, 0) for name in stage.clouds}),
        bills=tuple(_bill(line) for line in by_key["lines"]),
        estimated=by_key["total"]["estimated"],
    )


def books_without_the_node(stage: Stage) -> Books:
    """What the clouds alone can tell."""
    return _books_of_the_clouds(stage, {})


def _books_of_the_clouds(stage: Stage, ledger_nano_usd: Mapping[str, int]) -> Books:
    trips = stage.trips()
    bills = {name: cloud.bill() for name, cloud in stage.clouds.items()}
    logs = [line for cloud in stage.clouds.values() for line in cloud.log_lines()]
    return Books(
        accounts=tuple(
            Account(
                name, ledger_nano_usd.get(name), sum(call["cost_nano_usd"] for call in bill), len(bill), trips[name]
            )
            for name, bill in bills.items()
        ),
        bills=(),
        stayed_heard=sum(STAYS in line for line in logs),
        others_heard=sum(MAY_LEAVE in line for line in logs),
        estimated=0,
    )


def _bill(line: dict[str, Any]) -> Bill:
    return Bill(
        line["key"], line["requests"], usd_to_nano(Decimal(line["spent_usd"])), usd_to_nano(Decimal(line["cloud_usd"]))
    )


def total_spent_usd(document: Any) -> Decimal:
    """Of a usage document: what is spent, and what calls that are still out may come to."""
    total = document["total"]
    return Decimal(total["spent_usd"]) + Decimal(total["open_usd"]) + Decimal(total["orphaned_usd"])
