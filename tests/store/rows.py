"""Rows of `calls` as a ledger would have written them, and databases to put them in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from node.store.database import Database, place_of
from node.store.moments import HOUR_US
from node.store.schema import calls

AT_US = 1_795_910_400_000_000
"""2026-11-29 00:00 UTC."""
_number = count(1)


def row(**changes: Any) -> dict[str, Any]:
    """A settled local answer of 100 + 20 tokens that the cloud would have done for 130 nano-dollars."""
    request_id = changes.get("request_id", f"{next(_number):032x}")
    values = {
        "id": f"{request_id}.1",
        "request_id": request_id,
        "parent_id": None,
        "node": "n",
        "caller": "alice",
        "backend": "local",
        "model": "demo",
        "served_model": "demo",
        "kind": "chat",
        "state": "settled",
        "rule": "within_budget",
        "at_us": AT_US,
        "ended_us": AT_US + 1_000_000,
        "reserved_nano_usd": 0,
        "charged_nano_usd": 0,
        "billed_nano_usd": None,
        "list_nano_usd": 200,
        "cloud_nano_usd": 130,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cached_tokens": 0,
        "estimated": False,
        "usage_suspect": False,
        "ending": "done",
        "error_code": None,
        "may_leave": True,
        "prompt_bytes": 400,
        "max_output_tokens": 1024,
        "ttft_budget_us": 2_000_000,
        "queue_us": 1_000,
        "ttft_us": 200_000,
        "total_us": 900_000,
    } | changes
    return values | {"hour": values["at_us"] // HOUR_US}


def cloud_row(**changes: Any) -> dict[str, Any]:
    """A settled cloud answer that cost the 130."""
    paid = {"backend": "holysheep", "served_model": "gpt-4.1", "reserved_nano_usd": 900, "charged_nano_usd": 130}
    return row(**paid | changes)


def put(database: Database, *rows: dict[str, Any]) -> None:
    """Write them."""
    with database.writing() as connection:
        connection.execute(calls.insert(), list(rows))


@contextmanager
def ledger(folder: Path, *rows: dict[str, Any], url: str | None = None) -> Iterator[Database]:
    """A database with these rows."""
    database = Database(place_of(folder, url))
    database.open()
    try:
        if rows:
            put(database, *rows)
        yield database
    finally:
        database.close()
