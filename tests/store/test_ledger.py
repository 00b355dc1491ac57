"""The ledger over a real database: what is admitted, what it counts for, what becomes of it when things break."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from _harness import postgres
from sqlalchemy import select, text

from node.audit.chain import verify
from node.dispatch.accounts import Settlement
from node.dispatch.outcome import Ending
from node.errors import BudgetSpent, LedgerUnavailable, SettingsError
from node.money import NO_BUDGET, Budget
from node.store import database as databases
from node.store import ledger as ledgers
from node.store.audit import AuditRow, append
from node.store.database import Database, StoreUnavailable, place_of
from node.store.driver import Transaction
from node.store.ledger import SqlLedger
from node.store.schema import audit, calls, spend
from tests.store.entries import DOLLAR, done, entry
from tests.store.patience import be_patient

HOUR_US = 3_600_000_000
NOON_NS = 1_790_000_000 * 10**9  # 2026-09-21 14:13:20 UTC


class Wall:
    """The wall clock, set by hand."""

    def __init__(self) -> None:
        self.ns = NOON_NS

    def __call__(self) -> int:
        return self.ns


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server | None]:
    programs = postgres.binaries()
    if programs is None:
        yield None
        return
    with postgres.server(programs) as running:
        yield running


@pytest.fixture
def installed_server(server: postgres.Server | None) -> postgres.Server:
    if server is None:
        pytest.skip("PostgreSQL's server is not installed (Debian, Ubuntu: apt install postgresql)")
    return server


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, tmp_path: Path, server: postgres.Server | None
) -> AsyncIterator[Database]:
    url = None
    if request.param == "postgresql":
        if server is None:
            pytest.skip("PostgreSQL's server is not installed (Debian, Ubuntu: apt install postgresql)")
        url = server.url
    made = Database(place_of(tmp_path, url))
    yield made
    if url is not None:
        made.engine.dispose()
        with made.engine.connect() as connection, connection.begin():
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        made.engine.dispose()


Open = Callable[..., Awaitable[SqlLedger]]


@pytest.fixture
async def opened(database: Database) -> AsyncIterator[Open]:
    """Opens ledgers over the one database; closes them at the end."""
    ledgers: list[SqlLedger] = []

    async def open_one(budget: Budget = NO_BUDGET, wall: Callable[[], int] | None = None) -> SqlLedger:
        over = Database(database.place)
        ledger = SqlLedger(over, node_budget=lambda: budget, unix_ns=wall or Wall())
        ledgers.append(ledger)
        ledger.start()
        return ledger

    yield open_one
    for ledger in ledgers:
        await ledger.close()


async def rows(ledger: SqlLedger, database: Database) -> dict[str, dict[str, object]]:
    """All of `calls` by id, once everything that was given to the ledger is written."""
    await ledger.close()
    database.open()
    try:
        with database.reading() as connection:
            return {row.id: dict(row._mapping) for row in connection.execute(select(calls))}
    finally:
        database.close()


async def test_call_is_out_at_its_worst_case_and_then_counts_for_what_it_cost(database: Database, opened: Open) -> None:
    ledger = await opened()
    await ledger.admit(entry(1), NO_BUDGET)
    await ledger.admit(entry(2), NO_BUDGET)
    await ledger.admit(entry(3), NO_BUDGET)
    ledger.settle("r1.1", done(12345))
    ledger.release("r2.1", Settlement(charged_nano_usd=0, ending=Ending.FAILED, error_code="upstream_error"))
    ledger.note(entry(4, nano_usd=0), done(0))
    found = await rows(ledger, database)
    assert {key: (row["state"], row["charged_nano_usd"]) for key, row in found.items()} == {
        "r1.1": ("settled", 12345),
        "r2.1": ("released", 0),
        "r3.1": ("dispatched", DOLLAR),
        "r4.1": ("settled", 0),
    }
    assert (found["r1.1"]["prompt_tokens"], found["r1.1"]["completion_tokens"]) == (5, 7)
    assert found["r1.1"]["at_us"] == found["r4.1"]["at_us"] + 1_000_000  # type: ignore[operator]


async def test_ending_twice_changes_nothing(database: Database, opened: Open) -> None:
    ledger = await opened()
    await ledger.admit(entry(1), NO_BUDGET)
    ledger.settle("r1.1", done(5))
    ledger.settle("r1.1", done(500))
    ledger.release("r1.1", done(0))
    found = await rows(ledger, database)
    assert found["r1.1"]["charged_nano_usd"] == 5


async def test_row_77_sixty_four_at_once_at_the_edge_of_a_budget_for_seven(database: Database, opened: Open) -> None:
    ledger = await opened()
    budget = Budget(day_nano_usd=7 * DOLLAR + DOLLAR // 2)
    told = await asyncio.gather(*(ledger.admit(entry(n), budget) for n in range(64)), return_exceptions=True)
    assert sum(each is None for each in told) == 7
    refusals = [each for each in told if each is not None]
    assert {type(each) for each in refusals} == {BudgetSpent}
    assert "alice" not in str(refusals[0])
    assert "per day" in str(refusals[0])


async def test_what_is_settled_below_its_worst_case_makes_room_again(opened: Open) -> None:
    ledger = await opened()
    budget = Budget(hour_nano_usd=DOLLAR)
    await ledger.admit(entry(1), budget)
    with pytest.raises(BudgetSpent):
        await ledger.admit(entry(2, nano_usd=1), budget)
    ledger.settle("r1.1", done(10))
    await ledger.admit(entry(3, nano_usd=DOLLAR - 10), budget)


async def test_node_budget_counts_all_callers_and_a_keys_budget_only_its_own(opened: Open) -> None:
    ledger = await opened(Budget(month_nano_usd=3 * DOLLAR))
    await ledger.admit(entry(1, caller="alice"), Budget(hour_nano_usd=DOLLAR))
    with pytest.raises(BudgetSpent, match="this key's"):
        await ledger.admit(entry(2, caller="alice"), Budget(hour_nano_usd=DOLLAR))
    await ledger.admit(entry(3, caller="bob"), Budget(hour_nano_usd=2 * DOLLAR))
    await ledger.admit(entry(4, caller="bob"), Budget(hour_nano_usd=2 * DOLLAR))
    with pytest.raises(BudgetSpent, match="this node's"):
        await ledger.admit(entry(5, caller="carol"), NO_BUDGET)


async def test_row_73_windows_are_those_of_the_calendar_and_a_clock_set_back_opens_none(opened: Open) -> None:
    wall = Wall()
    ledger = await opened(wall=wall)
    budget = Budget(hour_nano_usd=DOLLAR, day_nano_usd=2 * DOLLAR)
    await ledger.admit(entry(1), budget)
    wall.ns += 50 * 60 * 10**9  # past three o'clock
    await ledger.admit(entry(2), budget)
    wall.ns -= 50 * 60 * 10**9
    for number in (3, 4):
        with pytest.raises(BudgetSpent):
            await ledger.admit(entry(number), budget)
    wall.ns += 24 * 3600 * 10**9
    await ledger.admit(entry(5), budget)


async def test_what_a_dead_node_had_out_is_orphaned_and_still_counts(database: Database, opened: Open) -> None:
    first = await opened()
    await first.admit(entry(1), NO_BUDGET)
    await first.close()  # as it is after a kill: nothing settles what is out
    second = await opened()
    with pytest.raises(BudgetSpent):
        await second.admit(entry(2, nano_usd=1), Budget(day_nano_usd=DOLLAR))
    second.settle("r1.1", done(1))  # too late: nobody knows what really came of it
    found = await rows(second, database)
    assert (found["r1.1"]["state"], found["r1.1"]["charged_nano_usd"]) == ("orphaned", DOLLAR)


async def test_what_another_living_node_has_out_is_left_alone(database: Database, opened: Open) -> None:
    first = await opened()
    await first.admit(entry(1), NO_BUDGET)
    second = await opened()
    await second.admit(entry(2), NO_BUDGET)
    assert first.node != second.node
    found = await rows(second, database)
    assert {row["state"] for row in found.values()} == {"dispatched"}


async def test_caller_that_leaves_while_it_is_written_down_counts_for_nothing(database: Database, opened: Open) -> None:
    ledger = await opened()
    waiting = [asyncio.ensure_future(ledger.admit(entry(n), NO_BUDGET)) for n in range(20)]
    await asyncio.sleep(0)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    found = await rows(ledger, database)
    assert sum(int(row["charged_nano_usd"]) for row in found.values()) == 0  # type: ignore[call-overload]


async def test_every_way_out_and_every_refusal_is_in_the_audit_chain(database: Database, opened: Open) -> None:
    ledger = await opened()
    await ledger.admit(entry(1), NO_BUDGET)
    with pytest.raises(BudgetSpent):
        await ledger.admit(entry(2), Budget(hour_nano_usd=1))
    await rows(ledger, database)
    database.open()
    with database.reading() as connection:
        found = [(row.event, row.request_id, row.rule) for row in connection.execute(select(audit))]
    database.close()
    assert found == [("let_out", "r1", "last_moment"), ("refused", "r2", "budget_spent")]


async def test_spend_is_what_the_rows_say_whoever_changes_them(database: Database, opened: Open) -> None:
    ledger = await opened()
    for number in range(30):
        await ledger.admit(entry(number, caller=f"caller{number % 3}"), NO_BUDGET)
        if number % 2:
            ledger.settle(f"r{number}.1", done(number))
    await ledger.close()
    database.open()
    with database.writing() as connection:
        connection.execute(text("UPDATE calls SET charged_nano_usd = 3 WHERE id = 'r4.1'"))
    with database.reading() as connection:
        kept = {(row.caller, row.hour): row.nano_usd for row in connection.execute(select(spend))}
        summed: dict[tuple[str, int], int] = {}
        for row in connection.execute(select(calls)):
            key = row.caller, row.hour
            summed[key] = summed.get(key, 0) + row.charged_nano_usd
    assert kept == summed
    for statement in ("DELETE FROM calls", "UPDATE calls SET caller = 'eve'", "DELETE FROM audit"):
        with pytest.raises(StoreUnavailable), database.writing() as connection:
            connection.execute(text(statement))
    database.close()


# What breaks ------------------------------------------------------------------------------------------------------


async def refused_for_want_of_a_ledger(ledger: SqlLedger, number: int) -> str:
    with pytest.raises(LedgerUnavailable):
        await ledger.admit(entry(number), NO_BUDGET)
    return str(ledger.document()["reason"])


async def admitted_before_long(ledger: SqlLedger, first: int) -> None:
    for number in range(first, first + 100):
        try:
            await ledger.admit(entry(number), NO_BUDGET)
        except LedgerUnavailable:
            await asyncio.sleep(0.1)
        else:
            return
    pytest.fail("the ledger did not come back")


def begun_ledger(folder: Path, url: str | None = None) -> SqlLedger:
    ledger = SqlLedger(Database(place_of(folder, url)), node_budget=lambda: NO_BUDGET)
    ledger.start()
    return ledger


async def test_row_71_another_process_holds_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_BUSY_S", 0.05)
    ledger = begun_ledger(tmp_path)
    await ledger.admit(entry(1), NO_BUDGET)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert "locked" in await refused_for_want_of_a_ledger(ledger, 2)
    ledger.settle("r1.1", done(4))
    other.execute("ROLLBACK")
    other.close()
    await admitted_before_long(ledger, 10)
    await ledger.close()
    database = Database(place_of(tmp_path, None))
    database.open()
    with database.reading() as connection:
        assert connection.scalar(select(calls.c.charged_nano_usd).where(calls.c.id == "r1.1")) == 4
    database.close()


async def test_row_71_file_taken_away_while_in_use_or_before_the_start_is_not_begun_again(tmp_path: Path) -> None:
    ledger = begun_ledger(tmp_path)
    await ledger.admit(entry(1), NO_BUDGET)
    aside = tmp_path / "aside"
    (tmp_path / "ledger.db").rename(aside)
    assert "taken away" in await refused_for_want_of_a_ledger(ledger, 2)
    await ledger.close()
    again = begun_ledger(tmp_path)
    assert "backup" in await refused_for_want_of_a_ledger(again, 3)
    aside.rename(tmp_path / "ledger.db")
    await admitted_before_long(again, 10)
    await again.close()


async def test_row_71_damaged_file_is_left_as_it_is_and_nothing_is_spent(tmp_path: Path) -> None:
    ledger = begun_ledger(tmp_path)
    for number in range(200):
        ledger.note(entry(number), done(0))
    await ledger.admit(entry(1000), NO_BUDGET)
    await ledger.close()
    file = tmp_path / "ledger.db"
    damaged = bytearray(file.read_bytes())
    damaged[3 * 4096 : 12 * 4096] = os.urandom(9 * 4096)
    file.write_bytes(damaged)
    again = begun_ledger(tmp_path)
    assert "damaged" in await refused_for_want_of_a_ledger(again, 3)
    await again.close()
    assert file.read_bytes()[3 * 4096 : 12 * 4096] == damaged[3 * 4096 : 12 * 4096]


async def test_row_71_file_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        blocked = tmp_path / "file"
        blocked.write_text("")
        folder = blocked / "below"  # root may write anywhere but below a file
    else:
        folder = tmp_path / "mine"
        folder.mkdir(mode=0o500)
    ledger = begun_ledger(folder)
    assert str(folder) in await refused_for_want_of_a_ledger(ledger, 1)
    await ledger.close()


async def test_row_72_server_that_goes_away_and_comes_back(installed_server: postgres.Server, tmp_path: Path) -> None:
    ledger = begun_ledger(tmp_path, installed_server.url)
    await ledger.admit(entry(1), NO_BUDGET)
    installed_server.stop()
    try:
        ledger.settle("r1.1", done(9))
        with pytest.raises(LedgerUnavailable):
            await ledger.admit(entry(2), NO_BUDGET)
    finally:
        installed_server.start()
    await admitted_before_long(ledger, 10)
    await ledger.close()
    database = Database(place_of(tmp_path, installed_server.url))
    with database.reading() as connection:
        assert connection.scalar(select(calls.c.charged_nano_usd).where(calls.c.id == "r1.1")) == 9
        assert not connection.scalar(select(calls.c.id).where(calls.c.id == "r2.1", calls.c.charged_nano_usd > 0))
    database.close()


async def test_row_72_server_that_hangs_up_in_the_middle_of_a_commit(
    installed_server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = begun_ledger(tmp_path, installed_server.url)
    await admitted_before_long(ledger, 4000)

    def hung_up(transaction: Transaction, rows: Sequence[AuditRow]) -> None:
        monkeypatch.setattr(ledgers, "append", append)
        with psycopg.connect(installed_server.url) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [transaction.cursor.connection.info.backend_pid])
        append(transaction, rows)

    monkeypatch.setattr(ledgers, "append", hung_up)
    await refused_for_want_of_a_ledger(ledger, 5000)
    await admitted_before_long(ledger, 6000)
    await ledger.close()
    database = Database(place_of(tmp_path, installed_server.url))
    with database.reading() as connection:
        assert connection.scalar(select(calls.c.id).where(calls.c.id == "r5000.1")) is None
        assert verify(connection).why is None
    database.close()


async def test_row_72_server_that_stands_still_holds_up_nobody_else(
    installed_server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = begun_ledger(tmp_path, installed_server.url)
    await admitted_before_long(ledger, 1000)
    monkeypatch.setattr(ledgers, "_PATIENCE_S", 2.0)
    with installed_server.standing_still():
        refused = asyncio.ensure_future(ledger.admit(entry(2000), NO_BUDGET))
        turns = 0
        while not refused.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(LedgerUnavailable):
            await refused
        assert turns > 20, "the event loop stood still with it"
    await admitted_before_long(ledger, 3000)
    await ledger.close()
    database = Database(place_of(tmp_path, installed_server.url))
    with database.reading() as connection:
        charged = connection.scalar(select(calls.c.charged_nano_usd).where(calls.c.id == "r2000.1"))
        assert not charged, "it was told that it may not leave"
    database.close()


def test_network_file_system_and_other_databases_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_file_system", lambda folder: "nfs4")
    with pytest.raises(SettingsError, match="network file system"):
        place_of(tmp_path, None)
    for url in ("mysql://u@h/d", "nonsense"):
        with pytest.raises(SettingsError, match=r"store\.url"):
            place_of(tmp_path, url)
