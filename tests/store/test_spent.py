"""What is told of the budget between requests: the windows of now, and the orphans of every node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from _harness.postgres import binaries, server

from node.spending import Spending, SpendingWatch
from node.store.database import FILE, Database, place_of
from node.store.moments import DAY_US, HOUR_US
from node.store.spent import orphans_query
from tests.store.rows import AT_US, cloud_row, ledger, row

NOON_US = AT_US + 12 * HOUR_US
"""2026-11-29 12:00 UTC, a Sunday."""
ROWS = (
    cloud_row(at_us=NOON_US, charged_nano_usd=1),
    cloud_row(at_us=NOON_US, charged_nano_usd=10, state="dispatched", caller="bob"),
    cloud_row(at_us=NOON_US - HOUR_US, charged_nano_usd=100),
    cloud_row(at_us=NOON_US - DAY_US, charged_nano_usd=1_000, state="orphaned", node="gone"),
    cloud_row(at_us=NOON_US - 2 * DAY_US, charged_nano_usd=10_000, state="orphaned", node="a"),
    cloud_row(at_us=NOON_US - 40 * DAY_US, charged_nano_usd=100_000),
    row(at_us=NOON_US),
)
SPENT = Spending({"hour": 11, "day": 111, "month": 11_111}, orphaned=2, orphaned_nano_usd=11_000)


def told(database: Database) -> Spending | None:
    return SpendingWatch(database, lambda: NOON_US + 1).read()


@pytest.fixture
def postgresql() -> Iterator[str]:
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian, Ubuntu: apt install postgresql)")
    with server(programs) as running:
        yield running.url


def test_windows_are_of_now_and_count_what_is_out(tmp_path: Path) -> None:
    with ledger(tmp_path, *ROWS) as database:
        assert told(database) == SPENT


def test_postgresql_says_the_same(tmp_path: Path, postgresql: str) -> None:
    with ledger(tmp_path, *ROWS, url=postgresql) as database:
        assert told(database) == SPENT


def test_ledger_in_which_nothing_is_written_has_spent_nothing(tmp_path: Path) -> None:
    with ledger(tmp_path) as database:
        assert told(database) == Spending({"hour": 0, "day": 0, "month": 0}, orphaned=0, orphaned_nano_usd=0)


def test_ledger_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    with ledger(tmp_path, *ROWS) as database:
        (tmp_path / FILE).rename(tmp_path / "elsewhere")
        assert told(database) is None
    assert told(Database(place_of(tmp_path / "none", None))) is None


def test_orphans_are_found_by_the_index_and_not_by_reading_every_row(tmp_path: Path) -> None:
    with ledger(tmp_path, *ROWS) as database, database.reading() as connection:
        compiled = orphans_query().compile(connection, compile_kwargs={"literal_binds": True})
        plan = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
    assert plan == ["SCAN calls USING INDEX calls_orphaned"], "which has no others in it"
