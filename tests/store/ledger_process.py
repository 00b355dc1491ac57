"""Ledgers in processes of their own, to be killed: `kill -9` drops locks and unwritten rows as nothing else does.

They are forked by a process that has imported everything, so one starts in a moment.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from node.dispatch.accounts import Entry, Settlement
from node.errors import Refused
from node.money import NO_BUDGET, Budget
from node.store.database import Database, place_of
from node.store.ledger import SqlLedger
from node.store.migrations import run as run  # imported before anything forks: Alembic takes its time
from tests.store.patience import be_patient

_KEY = b"only for this test"


@dataclass(frozen=True)
class Admit:
    """Ask for all of these at once; answered by the name of what each was refused with, None where it was admitted."""

    asked: list[tuple[Entry, Budget]]
    node_budget: Budget


@dataclass(frozen=True)
class End:
    """One that is out has ended."""

    entry_id: str
    settlement: Settlement
    released: bool


@dataclass(frozen=True)
class Note:
    """One that costs nothing is over."""

    entry: Entry
    settlement: Settlement


class LedgerProcess:
    """One ledger. `now_us` of each order is what the wall clock shows from then on."""

    def __init__(self, forker: Path, folder: Path, now_us: int) -> None:
        self._connection = Client(str(forker), authkey=_KEY)
        self.pid: int = self._connection.recv()
        self._connection.send((now_us, folder))
        self.node: str = self._connection.recv()

    def order(self, what: Admit | End | Note, now_us: int) -> list[str | None]:
        """Have it done."""
        self._connection.send((now_us, what))
        answer: list[str | None] = self._connection.recv()
        return answer

    def close(self) -> None:
        """End it as a node ends: everything is written."""
        self._connection.send(None)
        self._gone()

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        self._gone()

    def _gone(self) -> None:
        with suppress(EOFError, ConnectionError):
            self._connection.recv()  # the end of the connection
        with suppress(ProcessLookupError):
            watched = os.pidfd_open(self.pid)  # and of its locks
            select.select([watched], [], [])
            os.close(watched)
        self._connection.close()


@contextmanager
def forker(folder: Path) -> Iterator[Path]:
    """The address of a process that forks ledgers, until the end of the block."""
    address = folder / "forker"
    program = f"from {__name__} import fork_for_each; fork_for_each({str(address)!r})"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield address
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _serve(connection: Connection) -> None:
    now_us, folder = connection.recv()
    node_budget = NO_BUDGET
    ledger = SqlLedger(Database(place_of(folder, None)), node_budget=lambda: node_budget, unix_ns=lambda: now_us * 1000)
    ledger.start()
    while not ledger.node:  # noqa: ASYNC110 -- a thread opens it, and tells nobody
        await asyncio.sleep(0.001)
    connection.send(ledger.node)
    # In a thread: what has ended is handed over by the event loop, which has to go on meanwhile.
    while (order := await asyncio.to_thread(connection.recv)) is not None:
        now_us, what = order
        told: list[Any] = []
        match what:
            case Admit(asked, node_budget):
                told = await asyncio.gather(*(ledger.admit(*each) for each in asked), return_exceptions=True)
            case End(entry_id, settlement, True):
                ledger.release(entry_id, settlement)
            case End(entry_id, settlement, False):
                ledger.settle(entry_id, settlement)
            case Note(entry, settlement):
                ledger.note(entry, settlement)
        connection.send([type(each).__name__ if isinstance(each, Refused) else each for each in told])
    await ledger.close()


def fork_for_each(address: str) -> None:
    """What that process does."""
    be_patient(pytest.MonkeyPatch())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with Listener(address, authkey=_KEY) as listener:
        print("ready", flush=True)
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                connection.send(os.getpid())
                with suppress(EOFError):  # whoever asked is gone
                    asyncio.run(_serve(connection))
                os._exit(0)
            connection.close()
