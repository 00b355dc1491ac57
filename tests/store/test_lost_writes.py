"""The power goes: whatever had been admitted by then is in the ledger that is opened again, whole and unchanged."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text

from node.audit.chain import verify
from node.money import NO_BUDGET
from node.store.database import Database, place_of
from node.store.ledger import SqlLedger
from node.store.schema import calls, spend
from tests.store.entries import DOLLAR, entry
from tests.store.lost_writes import LEDGER, SLOPPY, build, losing_disk
from tests.store.patience import be_patient

AFTER = 10**9
"""The number of the call that the next node makes."""
CUTS = 24


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("losing-writes"))


async def goes_on(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Start on what a power cut has left, let a call out, and return the others' rows: state, worst case, charge."""
    ledger = SqlLedger(Database(place_of(folder, None)), node_budget=lambda: NO_BUDGET)
    ledger.start()
    try:
        await ledger.admit(entry(AFTER), NO_BUDGET)
    finally:
        await ledger.close()
    database = Database(place_of(folder, None))
    database.open()
    with database.reading() as connection:
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        verdict = verify(connection)
        rows = connection.execute(select(calls)).all()
        spent = sum(connection.scalars(select(spend.c.nano_usd)))
    database.close()
    assert (verdict.why, verdict.events["let_out"]) == (None, len(rows))
    assert spent == sum(row.charged_nano_usd for row in rows)
    states = {row.id: (row.state, row.reserved_nano_usd, row.charged_nano_usd) for row in rows}
    assert states.pop(f"r{AFTER}.1") == ("dispatched", DOLLAR, DOLLAR)
    return states


async def test_row_69_what_was_admitted_is_there_after_the_power_was_cut(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    chance = random.Random(70)
    said: list[str] = []
    with losing_disk(tmp_path, library, LEDGER) as disk:
        for number in range(CUTS):
            await asyncio.sleep(chance.uniform(0, 0.2))  # it writes meanwhile
            found = tmp_path / f"after-{number}"
            said = disk.cut(found, chance if number % 3 else None)
            rows = await goes_on(found / "data")
            assert set(said) <= set(rows)
            for name, (state, reserved, charged) in rows.items():
                cost = int(name[1:-2]) % 1000
                assert (state, charged) in {("orphaned", reserved), ("settled", cost)}
        assert len(said) > CUTS, "it hardly did anything"


def test_disk_of_this_test_does_lose_what_nobody_has_flushed(tmp_path: Path, library: Path) -> None:
    lost = []
    with losing_disk(tmp_path, library, SLOPPY) as disk:
        for number in range(10):  # one of them may come right after a checkpoint, which flushes
            time.sleep(0.05)
            after = tmp_path / f"after-{number}"
            said = disk.cut(after, None)
            database = Database(place_of(after / "data", None))
            with database.engine.connect() as connection:
                assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
                there = inspect(connection).has_table("calls")  # even that is lost, where nothing was ever flushed
                rows = set(connection.scalars(text("SELECT id FROM calls"))) if there else set()
            database.engine.dispose()
            lost.append(len(said) - len(rows))
    assert max(lost) > 0
