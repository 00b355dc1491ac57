"""A ledger on a disk whose power can be cut: what was not flushed is gone, or some of it is.

The ledger runs in a process of its own, with `losing_writes.c` between it and the system, and says on its standard
output what it was told is written down. A cut stops it, takes all it has said, and makes the folder found after it.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from node.money import NO_BUDGET
from node.store.database import Database, place_of
from node.store.ledger import SqlLedger
from tests.store.entries import done, entry
from tests.store.patience import be_patient

_SECTOR_BYTES = 512
_CLIENTS = 4


def build(to: Path) -> Path:
    """The shim as a library."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    assert compiler, "it is built with a C compiler: install one, or name it in CC"
    library = to / "losing_writes.so"
    source = Path(__file__).with_name("losing_writes.c")
    subprocess.run([*compiler.split(), "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


class LosingDisk:
    """A folder, and a program that writes into its folder ``data`` and says line by line what is safe there."""

    def __init__(self, folder: Path, library: Path, program: str) -> None:
        self._disk, self._kept = folder / "disk", folder / "disk.kept"
        self._disk.mkdir()
        self._kept.mkdir()
        self._said = b""
        environ = {**os.environ, "LD_PRELOAD": str(library), "LOSING_WRITES": str(self._disk)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(self._disk / "data")], stdout=subprocess.PIPE, env=environ
        )
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        self._said += self._lines.readline()  # it has begun
        os.set_blocking(self._lines.fileno(), False)

    def cut(self, to: Path, some_of_it: random.Random | None) -> list[str]:
        """Make `to` what is found after a power cut now, and return what had been said to be safe.

        Nothing that was not flushed is there; with `some_of_it` any sectors and names of it are.
        """
        assert self._process.poll() is None, "the program has ended"
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        try:
            self._said += self._lines.read() or b""
            self._find(self._disk, to, some_of_it)
        finally:
            self._process.send_signal(signal.SIGCONT)
        return self._said.decode().split("\n")[:-1]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._lines.close()

    def _find(self, folder: Path, to: Path, some_of_it: random.Random | None) -> None:
        to.mkdir()
        flushed = self._kept / f"folder-{folder.stat().st_ino}"
        lines = flushed.read_text().splitlines() if flushed.exists() else []
        names = {int(inode): name for inode, name in (line.split(" ", 1) for line in lines)}
        for path in folder.iterdir():
            inode = path.stat().st_ino
            if names.get(inode) != path.name and not (some_of_it and some_of_it.random() < 0.5):
                continue
            if path.is_dir():
                self._find(path, to / path.name, some_of_it)
                continue
            kept = self._kept / f"file-{inode}"
            content = kept.read_bytes() if kept.exists() else b""
            if some_of_it:
                content = _mixed(content, path.read_bytes(), some_of_it)
            (to / path.name).write_bytes(content)


def _mixed(flushed: bytes, written: bytes, chance: random.Random) -> bytes:
    length = chance.choice((len(flushed), len(written)))
    likely = chance.choice((0.1, 0.5, 0.9))
    mixed = bytearray(flushed[:length].ljust(length, b"\0"))
    for at in range(0, min(length, len(written)), _SECTOR_BYTES):
        if chance.random() < likely:
            sector = written[at : min(at + _SECTOR_BYTES, length)]
            mixed[at : at + len(sector)] = sector
    return bytes(mixed)


@contextmanager
def losing_disk(folder: Path, library: Path, program: str) -> Iterator[LosingDisk]:
    """One, until the end of the block."""
    disk = LosingDisk(folder, library, program)
    try:
        yield disk
    finally:
        disk.close()


LEDGER = f"from {__name__} import keep_a_ledger; keep_a_ledger()"
"""The program that admits calls and ends them for as long as it is let."""

SLOPPY = """
import sqlite3, sys, os
os.makedirs(sys.argv[1])
database = sqlite3.connect(sys.argv[1] + "/ledger.db", isolation_level=None)
for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", "CREATE TABLE calls (id)"):
    database.execute(statement)
for folder in (sys.argv[1], sys.argv[1] + "/.."):
    os.fsync(os.open(folder, os.O_RDONLY))
for number in range(10**9):
    database.execute("INSERT INTO calls VALUES (?)", (f"r{number}.1",))
    os.write(1, b"r%d.1\\n" % number)
"""
"""A program that keeps its calls as `synchronous = NORMAL` does: after a kill all is there, after a power cut not."""


def keep_a_ledger() -> NoReturn:
    """What that process does."""
    be_patient(pytest.MonkeyPatch())
    asyncio.run(_admit_for_ever(Path(sys.argv[1])))
    raise AssertionError("it has ended")


async def _admit_for_ever(folder: Path) -> None:
    ledger = SqlLedger(Database(place_of(folder, None)), node_budget=lambda: NO_BUDGET)
    ledger.start()

    async def client(number: int) -> None:
        while True:
            number += _CLIENTS
            await ledger.admit(entry(number, nano_usd=1000), NO_BUDGET)
            os.write(1, f"r{number}.1\n".encode())
            if number % 3:
                ledger.settle(f"r{number}.1", done(number % 1000))

    await asyncio.gather(*map(client, range(_CLIENTS)))
