"""Row 70: the ledger's disk is full. Nothing is let out, what has ended is kept, and space is all it takes to go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import select, text

from node.audit.chain import verify
from node.errors import LedgerUnavailable
from node.money import NO_BUDGET
from node.store.database import Database, place_of
from node.store.ledger import SqlLedger
from node.store.schema import calls
from tests.small_disk import MakeDisk, small_disk
from tests.store.entries import done, entry

__all__ = ["small_disk"]  # a fixture


async def is_let_out(ledger: SqlLedger, number: int) -> bool:
    try:
        await ledger.admit(entry(number, nano_usd=1000), NO_BUDGET)
    except LedgerUnavailable:
        return False
    return True


async def test_row_70_ledger_fills_its_disk_and_goes_on_when_there_is_room_again(
    tmp_path: Path, small_disk: MakeDisk
) -> None:
    folder = tmp_path / "data"
    disk = small_disk(folder, 768)
    ledger = SqlLedger(Database(place_of(folder, None)), node_budget=lambda: NO_BUDGET)
    ledger.start()
    out: list[int] = []
    refused: list[int] = []
    number = 0
    while len(refused) < 3:
        number += 1
        (out if await is_let_out(ledger, number) else refused).append(number)
        if not ledger.available:
            assert "full" in str(ledger.document()["reason"])
            await asyncio.sleep(0.3)
    for each in out[:5]:
        ledger.settle(f"r{each}.1", done(7))
    ledger.note(entry(10_000, nano_usd=0), done(0))  # local work goes on

    disk.has_room_for(8192)
    while not await is_let_out(ledger, number := number + 1):
        refused.append(number)
        assert len(refused) < 200, ledger.document()
        await asyncio.sleep(0.1)
    out.append(number)
    await ledger.close()

    database = Database(place_of(folder, None))
    database.open()
    with database.reading() as connection:
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        assert verify(connection).why is None
        rows = {row.id: (row.state, row.charged_nano_usd) for row in connection.execute(select(calls))}
    database.close()
    expected = {f"r{each}.1": ("dispatched", 1000) for each in out} | {"r10000.1": ("settled", 0)}
    expected |= {f"r{each}.1": ("settled", 7) for each in out[:5]}
    assert {name: row for name, row in rows.items() if row != ("released", 0)} == expected
