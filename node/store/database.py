"""Where ledger, keys and audit lie: SQLite in the data folder, or PostgreSQL by URL.

SQLite: WAL, every commit flushed to the disk, and never two writers at once, across processes too: before 3.51.3 a
commit beside another connection's checkpoint can corrupt the log. So whoever writes holds `<folder>/ledger.lock`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event, inspect, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from node.errors import SettingsError
from node.store.driver import Transaction
from node.store.folders import flush_folder, make_folder

FILE: Final = "ledger.db"
EMULATED_FILE: Final = "ledger-emulated.db"
_BUSY_S: Final = 2.0
_CONNECT_S: Final = 5
_STATEMENT_MS: Final = 5000
_REPORT_MS: Final = 120_000
# POSIX locks and shared memory, which WAL needs, do not hold there between machines.
_NETWORK: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3"),
    }
)
# Any number will do, the same for all nodes: one of them at a time admits, and appends to the audit chain.
_TAKE_TURN: Final = f"SELECT pg_advisory_xact_lock({0x5F111A7})"


class StoreUnavailable(Exception):
    """The database cannot be used now. The message says why, and what to do where something can be done."""


class RowRejected(StoreUnavailable):
    """The database works, and does not take this: a bug of the node's, not a fault of the store."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the database is. `folder` holds the node's own files too, and is there even with PostgreSQL."""

    url: URL
    folder: Path

    @property
    def file(self) -> Path | None:
        """SQLite's file, None for PostgreSQL."""
        return Path(self.url.database) if self.url.get_backend_name() == "sqlite" and self.url.database else None


def data_folder(given: str | None, environ: Mapping[str, str]) -> Path:
    """`given`, else ``SPILLWAY_DATA``, else the user's data folder as the XDG rules have it."""
    if given is not None:
        return Path(given).expanduser()
    if named := environ.get("SPILLWAY_DATA"):
        return Path(named).expanduser()
    shared = environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path(environ.get("HOME") or Path.home(), ".local", "share")) / "spillway"


def place_of(folder: Path, url: str | None, *, emulated: bool = False) -> Place:
    """The place that settings name. What an emulator bills is kept in a file of its own.

    Raises `SettingsError` for an URL of another kind, and for a folder on a network file system.
    """
    if url is None:
        if (kind := _file_system(folder)) in _NETWORK:
            raise SettingsError(
                f"store.folder: {folder} lies on a network file system ({kind}), where SQLite's locks do not hold. "
                "Choose a local folder, or PostgreSQL with store.url"
            )
        return Place(URL.create("sqlite", database=str(folder / (EMULATED_FILE if emulated else FILE))), folder)
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError as error:
        raise SettingsError("store.url: is not a database URL, such as postgresql://user@host/spillway") from error
    if parsed.get_backend_name() != "postgresql":
        raise SettingsError(f"store.url: {parsed.get_backend_name()} is not supported; use a postgresql:// URL")
    return Place(parsed.set(drivername="postgresql+psycopg"), folder)


class Database:
    """One open database. `writing()` is a transaction, `reading()` a connection that sees what is committed.

    Connections may be used from any thread, one thread each. Everything raises `StoreUnavailable`.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._file = place.file
        self._inode: int | None = None
        self._lock_fd: int | None = None
        self._is_open = False
        self._writer = threading.Lock()
        self.engine = (
            _sqlite_engine(place.url) if self._file is not None else _postgres_engine(place.url, _STATEMENT_MS)
        )

    def open(self) -> None:
        """Make what is missing, and bring the tables up to date.

        A SQLite file that was there and is gone, or is damaged, is never replaced: nothing spent is forgotten. What is
        open already is left as it is.
        """
        if self._is_open:
            return
        from node.store.migrations.run import NewerTables, migrate  # and with it Alembic, only now

        try:
            make_folder(self.place.folder)
            if self._file is not None:
                self._open_file(self._file)
            with self._translated(), self.writing() as connection:
                if self._file is not None and connection.scalar(text("PRAGMA quick_check(1)")) != "ok":
                    raise StoreUnavailable(_damaged(self._file))
                migrate(connection)
            self._is_open = True
        except NewerTables as error:
            raise StoreUnavailable(str(error)) from error
        except OSError as error:
            raise StoreUnavailable(f"{self.place.folder}: {error.strerror or error}") from error

    def open_beside(self) -> None:
        """Open what a node, which may be running, has made: nothing is made, looked through or brought up to date.

        `open` looks through the whole file, and whoever wants to write waits meanwhile. A query may take minutes:
        nobody waits for it but who asked.
        """
        if self._file is None:
            self.engine = _postgres_engine(self.place.url, _REPORT_MS)
        try:
            if self._file is not None:
                self._open_lock(self._file)
                self._inode = self._file.stat().st_ino
            with self.reading() as connection:
                if not inspect(connection).has_table("calls"):
                    raise StoreUnavailable(f"{self._name} is empty: no node has kept its ledger there yet")
        except FileNotFoundError as error:
            if self._file is not None and self._file.with_suffix(".id").exists():
                raise StoreUnavailable(_gone(self._file)) from error
            raise StoreUnavailable(f"there is no ledger in {self.place.folder} yet") from error
        except OSError as error:
            raise StoreUnavailable(f"{self.place.folder}: {error.strerror or error}") from error

    def _open_lock(self, file: Path) -> None:
        if self._lock_fd is None:
            self._lock_fd = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _open_file(self, file: Path) -> None:
        self._open_lock(file)
        marker = file.with_suffix(".id")
        if not file.exists():
            if marker.exists():
                raise StoreUnavailable(_gone(file))
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            flush_folder(file.parent)  # before anything says that it was there
        self._inode = file.stat().st_ino
        with self._translated(), self.engine.connect() as connection:
            connection.execute(text("PRAGMA journal_mode"))  # reads the header: a damaged file stops here
        if not marker.exists():
            marker.write_text(secrets.token_hex(8) + "\n")
            flush_folder(file.parent)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write, committed and flushed at its end. Alone: others wait, or are refused."""
        with self._translated(), self._writer, self._locked(), self.engine.connect() as connection, connection.begin():
            if self._file is None:
                connection.execute(text(_TAKE_TURN))
            yield connection

    @contextmanager
    def committing(self) -> Iterator[Transaction]:
        """As `writing`, by the driver alone: for what is written with every call."""
        with self._translated(), self._writer, self._locked(), closing(self.engine.raw_connection()) as connection:
            dialect = self.engine.dialect
            try:
                cursor = connection.cursor()
                cursor.execute("BEGIN IMMEDIATE" if self._file is not None else _TAKE_TURN)
                yield Transaction(cursor, dialect)
                connection.commit()
            except self._driver.Error as error:
                if dialect.is_disconnect(error, connection.driver_connection, None):
                    connection.invalidate(error)
                raise  # and what has been written is rolled back when the connection goes back to the pool

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for queries; each sees what was committed when it began."""
        self._check_file()
        with self._translated(), self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Close every connection."""
        with self._writer, self._locked(required=False):
            self.engine.dispose()
        self._is_open = False
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _check_file(self) -> None:
        if self._file is None:
            return
        try:
            inode: int | None = self._file.stat().st_ino
        except FileNotFoundError:
            inode = None
        if inode != self._inode:
            # SQLite would go on writing into a file without a name.
            raise StoreUnavailable(f"{self._file} was taken away or exchanged while it was in use")

    @contextmanager
    def _locked(self, *, required: bool = True) -> Iterator[None]:
        if self._file is None:
            yield
            return
        if required:
            self._check_file()
        if self._lock_fd is None:
            if required:
                raise StoreUnavailable(f"{self._file} is not open")
            yield
            return
        until_s = time.monotonic() + _BUSY_S
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until_s:
                    raise StoreUnavailable(f"another process has held {self._file} for {_BUSY_S:g} s") from error
                time.sleep(0.002)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, self._driver.Error) as error:
            cause = getattr(error, "orig", None) or error
            reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            if self._file is not None and ("malformed" in reason or "not a database" in reason):
                reason = _damaged(self._file)
            driver = self._driver
            rejected = isinstance(cause, (driver.IntegrityError, driver.DataError, driver.ProgrammingError))
            raise (RowRejected if rejected else StoreUnavailable)(f"{self._name}: {reason}") from error

    @property
    def _driver(self) -> Any:
        return self.engine.dialect.loaded_dbapi

    @property
    def _name(self) -> str:
        return str(self._file or self.place.url.render_as_string(hide_password=True))


def check_file(path: Path) -> None:
    """Raises `SettingsError` unless `path` is an undamaged SQLite ledger."""
    if not path.is_file():
        raise SettingsError(f"{path}: there is no such file")
    if path.with_name(f"{path.name}-wal").exists():
        raise SettingsError(f"{path}: has a log beside it, so not all is in this file; use what `ledger backup` makes")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise SettingsError(f"{path}: is damaged: {said}")
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone() is None:
                raise SettingsError(f"{path}: is not a ledger of Spillway's")
    except sqlite3.Error as error:
        raise SettingsError(f"{path}: {error}") from error


def _gone(file: Path) -> str:
    return (
        f"{file} is gone, and what was spent with it. Put it back from a backup (spillway ledger restore BACKUP); "
        f"to begin again at zero, remove {file.with_suffix('.id')}"
    )


def _damaged(file: Path) -> str:
    return (
        f"{file} is damaged. It is left as it is, and nothing is spent until it is put back from a backup or repaired "
        "(docs/operations.md)"
    )


def _sqlite_engine(url: URL) -> Engine:
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": _BUSY_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `begin` below does
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # `get_isolation_level` asks SQLite, which always says SERIALIZABLE; readers would take the write lock.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgres_engine(url: URL, statement_ms: int) -> Engine:
    return sqlalchemy.create_engine(
        url,
        pool_size=2,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _CONNECT_S,
            "options": f"-c statement_timeout={statement_ms} -c lock_timeout={_STATEMENT_MS}",
            "application_name": "spillway",
            "keepalives_idle": 10,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "tcp_user_timeout": _STATEMENT_MS * 2,
        },
    )


def _file_system(folder: Path) -> str | None:
    """The kind of file system that `folder`, or the first folder above it that is there, lies on; None: not known."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    here = here.resolve()
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return None
    best, kind = "", None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if len(point) >= len(best) and here.is_relative_to(point):
            best, kind = point, after.split()[0]
    return kind
