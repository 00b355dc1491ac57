"""A ledger that is backed up, put back or moved is the same to the last row, or stays where it was."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _harness.postgres import binaries, server
from sqlalchemy import select

from node import cli
from node.errors import SettingsError
from node.progress import Progress
from node.store.copying import back_up, copy_ledger, restore
from node.store.database import Database, StoreUnavailable, place_of
from node.store.identity import take_identity
from node.store.schema import audit, calls, keys, metadata, secrets, spend
from tests.store.rows import AT_US, cloud_row, ledger, put, row


def contents(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.reading() as connection:
        return {
            table.name: [tuple(each) for each in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in metadata.sorted_tables
        }


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Database]:
    """A ledger with something in every table."""
    rows = [cloud_row(caller=f"c{n % 7}", at_us=AT_US + n, cached_tokens=None) for n in range(6000)]
    entry = {"at_us": AT_US, "node": "n", "residency": "any", "rule": "r", "caller": "c", "request_id": "r"}
    with ledger(tmp_path / "full", *rows, row(estimated=True)) as database:
        with database.writing() as connection:
            connection.execute(secrets.insert().values(name="salt", value="x"))
            connection.execute(
                keys.insert().values(
                    id="k", name="ü", sha256="a" * 64, residency="any", priority=1, models='["demo"]', created_us=AT_US
                )
            )
            connection.execute(
                audit.insert(),
                [{"seq": n, "event": "let_out", "prompt_bytes": n, "hash": "h" * 64, **entry} for n in (1, 2, 3)],
            )
        yield database


def test_ledger_moves_to_postgresql_and_back_without_a_difference(full: Database, tmp_path: Path) -> None:
    if (programs := binaries()) is None:
        pytest.skip("no PostgreSQL server is installed here")
    told: list[tuple[int, int | None]] = []

    class Tells(Progress):
        def advance(self, more: int) -> None:
            super().advance(more)
            done, part = self._at
            told.append((done, part.total))

    with server(programs) as running, ledger(tmp_path / "pg", url=running.url) as there:
        copied = copy_ledger(full, there, Tells("copying"))
        assert copied == {"calls": 6001, "audit": 3, "keys": 1, "secrets": 1, "spend": 7}
        assert contents(there) == contents(full)
        assert told[0][1] == 6006
        assert told[-1] == (6006, 6006)
        with pytest.raises(SettingsError, match="the target is not empty: there are rows in its table"):
            copy_ledger(full, there, Progress("copying"))
        with ledger(tmp_path / "back") as back:
            copy_ledger(there, back, Progress("copying"))
            assert contents(back) == contents(full)
            with pytest.raises(StoreUnavailable, match="calls are not deleted"), back.writing() as connection:
                connection.execute(calls.delete())


def test_copy_that_breaks_off_leaves_nothing_behind(full: Database, tmp_path: Path) -> None:
    class Full(Exception):
        pass

    class Breaks(Progress):
        def advance(self, more: int) -> None:
            super().advance(more)
            if self._at[0] > 3000:
                raise Full

    with ledger(tmp_path / "there") as there:
        with pytest.raises(Full):
            copy_ledger(full, there, Breaks("copying"))
        assert all(rows == [] for rows in contents(there).values())


def test_copy_that_differs_is_not_kept(full: Database, tmp_path: Path) -> None:
    with ledger(tmp_path / "there") as there:
        with there.writing() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER eats AFTER INSERT ON keys BEGIN UPDATE keys SET priority = priority + 1; END"
            )
        with pytest.raises(SettingsError, match="the copy of the table keys differs"):
            copy_ledger(full, there, Progress("copying"))
        assert all(rows == [] for rows in contents(there).values())


def test_backup_is_the_moment_it_was_made_while_the_node_writes_on(full: Database, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    before = contents(full)
    with full.writing() as connection:
        connection.execute(calls.insert().values(row()))  # not committed yet
        back_up(full, file)
    put(full, cloud_row())
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []
    with pytest.raises(SettingsError, match="is there already"):
        back_up(full, file)

    full.close()
    (aside,) = filter(None, [restore(file, full.place.file or Path())])
    with ledger(full.place.folder) as restored:
        assert contents(restored) == before
    assert aside.name == "ledger.db.aside-1"
    with sqlite3.connect(aside) as old:
        assert old.execute("SELECT count(*) FROM calls").fetchone() == (6003,)


def test_log_of_the_old_file_is_not_played_into_the_new_one(full: Database, tmp_path: Path) -> None:
    file = full.place.file
    assert file is not None
    back_up(full, tmp_path / "backup.db")
    before = contents(full)
    put(full, cloud_row())
    (tmp_path / "left").write_bytes(file.with_name("ledger.db-wal").read_bytes())
    full.close()
    file.with_name("ledger.db-wal").write_bytes((tmp_path / "left").read_bytes())  # as a kill leaves it
    restore(tmp_path / "backup.db", file)
    with ledger(full.place.folder) as restored:
        assert contents(restored) == before


def test_what_is_no_whole_ledger_is_not_put_in_its_place(full: Database, tmp_path: Path) -> None:
    file = full.place.file
    assert file is not None
    backup, other = tmp_path / "backup.db", tmp_path / "other.db"
    back_up(full, backup)
    data = bytearray(backup.read_bytes())
    data[4096 * 20 : 4096 * 60] = os.urandom(4096 * 40)
    backup.write_bytes(data)
    sqlite3.connect(other).execute("CREATE TABLE t (a)").connection.commit()
    copied = tmp_path / "copied.db"
    copied.write_bytes(file.read_bytes())
    copied.with_name("copied.db-wal").write_bytes(b"a log")  # somebody copied a ledger that was in use
    for bad in (copied, backup, other, tmp_path / "gone.db", Path(__file__)):
        with pytest.raises(SettingsError, match=str(bad)):
            restore(bad, file)
    assert len(contents(full)["calls"]) == 6001


def command(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, str, str]:
    config = folder / "spillway.yaml"
    config.write_text(f"store: {{folder: {folder / 'full'}}}\n")
    code = cli.main(["ledger", *arguments, "--config", str(config)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_commands_back_up_restore_and_move(full: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backup = tmp_path / "b.db"
    assert command(capsys, tmp_path, "backup", str(backup))[0] == 0
    identity = take_identity(full.place.folder)
    for arguments in (("restore", str(backup)), ("copy", "--to", str(tmp_path / "new"))):
        code, _, said = command(capsys, tmp_path, *arguments)
        assert (code, said) == (1, f"spillway: a node is running on {full.place.folder}; stop it first\n")
    identity.give_back()
    code, _, said = command(capsys, tmp_path, "copy", "--to", str(tmp_path / "new"))
    assert (code, "--to: the ledger is a SQLite file already" in said) == (1, True)
    full.close()
    code, out, _ = command(capsys, tmp_path, "restore", str(backup))
    assert (code, f"put back from {backup}" in out) == (0, True)
    if (programs := binaries()) is None:
        pytest.skip("no PostgreSQL server is installed here")
    with server(programs) as running:
        code, out, _ = command(capsys, tmp_path, "copy", "--to", running.url)
        assert (code, out.splitlines()[0]) == (
            0,
            "audit: 3 rows, calls: 6,001 rows, keys: 1 rows, secrets: 1 rows, spend: 7 rows",
        )
        database = Database(place_of(tmp_path / "full", running.url))
        database.open_beside()
        with database.reading() as connection:
            assert connection.scalar(select(spend.c.nano_usd).where(spend.c.caller == "c0")) == 130 * 858
        database.close()
