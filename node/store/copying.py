"""A whole ledger into another database, and into a file: all of it, checked, or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Integer, Table, func, insert, select, text

from node.errors import SettingsError
from node.progress import Progress
from node.store.database import Database, check_file
from node.store.schema import metadata, spend

# `spend` is made by the database itself, from the rows of `calls`; it is compared all the same.
_COPIED: Final = tuple(table for table in metadata.sorted_tables if table is not spend)
_TABLES: Final = (*_COPIED, spend)
_BATCH: Final = 5000
# Sums of moments overflow 64 bits; sums of remainders do not, for nine billion rows.
_PRIME: Final = 1_000_000_007


def copy_ledger(source: Database, target: Database, progress: Progress) -> dict[str, int]:
    """Every row of `source` into `target`, in one transaction; how many rows of each table there are.

    Before it is committed, counts and check sums of every column are compared on both sides. Raises `SettingsError`
    where the target is not empty, and where the two differ.
    """
    with _snapshot(source) as reader, target.writing() as writer:
        _without_timeout(writer)
        for table in _TABLES:
            if writer.execute(select(table).limit(1)).first() is not None:
                raise SettingsError(f"the target is not empty: there are rows in its table {table.name}")
        total = sum(_count(reader, table) for table in _COPIED)
        progress.now("copying", total=total)
        for table in _COPIED:
            for rows in _batches(reader, table):
                _insert(writer, table, rows)
                progress.advance(len(rows))
        progress.now("comparing", total=len(_TABLES), unit="tables")
        for table in progress.counting(_TABLES):
            if _sums(reader, table) != _sums(writer, table):
                raise SettingsError(f"the copy of the table {table.name} differs from the original; nothing was kept")
        return {table.name: _count(writer, table) for table in _TABLES}


def back_up(source: Database, file: Path) -> None:
    """A copy of a SQLite ledger as it is at this moment, whole and looked through, while a node may go on writing.

    Raises `SettingsError` where `file` is there already or cannot be written, and for PostgreSQL.
    """
    if source.place.file is None:
        raise SettingsError("the ledger is in PostgreSQL: back it up with pg_dump, see docs/operations.md")
    if file.exists():
        raise SettingsError(f"{file}: is there already")
    part = _part_of(file)
    try:
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with source.reading() as connection:
                connection.execute(text("VACUUM INTO :part"), {"part": str(part)})
            check_file(part)
            _flush(part)
            os.link(part, file)
        finally:
            part.unlink()
        _flush(file.parent)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror or error}") from error


def restore(backup: Path, file: Path) -> Path | None:
    """Put `backup` in the place of the ledger `file`; where what was there has gone, None if nothing was.

    No node may be running. Raises `SettingsError` where the backup is not a whole ledger, or something cannot be
    written; then the old file is where it was.
    """
    part = _part_of(file)
    try:
        check_file(backup)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            shutil.copyfile(backup, part)
            _flush(part)
            aside = _set_aside(file)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        _flush(file.parent)
    except OSError as error:
        raise SettingsError(f"{error.filename or file}: {error.strerror or error}") from error
    return aside


def copied_bytes(file: Path) -> int:
    """How much there is of a copy that `back_up` or `restore` is making for `file`; 0 before and after."""
    parts = file.parent.glob(f".{file.name}.*.part")
    with suppress(OSError):  # it gets its own name at any moment
        return max((each.stat().st_size for each in parts), default=0)
    return 0


def _part_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")


def _set_aside(file: Path) -> Path | None:
    """The old file, and what has not been written back to it: a log that stayed would be played into the new one."""
    number = 1
    while (aside := file.with_name(f"{file.name}.aside-{number}")).exists():
        number += 1
    was_there = file.exists()
    for ending in ("-wal", "-shm", ""):
        old = file.with_name(file.name + ending)
        if old.exists():
            old.rename(aside.with_name(aside.name + ending))
    return aside if was_there else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _snapshot(database: Database) -> Iterator[Connection]:
    """Everything as it was at one moment."""
    with database.reading() as connection:
        if database.place.file is None:
            connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            _without_timeout(connection)
        else:
            connection.exec_driver_sql("BEGIN")
        try:
            yield connection
        finally:
            connection.exec_driver_sql("ROLLBACK")


def _without_timeout(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")


def _batches(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    """In the order of the primary key, by which the next batch is found."""
    (key,) = table.primary_key.columns
    last: Any = None
    while True:
        query = select(table).order_by(key).limit(_BATCH)
        if last is not None:
            query = query.where(key > last)
        rows = [dict(row) for row in connection.execute(query).mappings()]
        if not rows:
            return
        yield rows
        last = rows[-1][key.name]


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Triggers see every row, also with PostgreSQL's COPY, which is ten times as fast as single inserts."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        connection.execute(insert(table), rows)
        return
    names = [column.name for column in table.columns]
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    with (
        driver.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)) as copy,
    ):
        for row in rows:
            copy.write_row([row[name] for name in names])


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _sums(connection: Connection, table: Table) -> tuple[int, ...]:
    columns = [
        func.sum(column % _PRIME) if isinstance(column.type, Integer) else func.count(column)
        for column in table.columns
    ]
    row = connection.execute(select(func.count(), *columns).select_from(table)).one()
    return tuple(int(value or 0) for value in row)
