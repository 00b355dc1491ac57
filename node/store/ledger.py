"""The ledger: a thread of its own writes it, many attempts in one commit.

    admit()    ─┐                       one transaction: ends first, then room in every budget, then what goes out
    settle()    ├─ queue ─ thread ───►  with its audit rows, then what was free; committed and flushed; then everybody
    release()   │                       who waited is told
    note()     ─┘

What one turn of the event loop admits is handed over together, since nobody of it could be told before the next turn,
and what arrives while a commit is being flushed gathers for the next: a hundred calls at once cost little more than
one. The event loop never waits for the disk. When it fails, nothing is admitted (fail closed); what has ended is kept
in memory and written once it can be, without a restart.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, func, select, update

from node.dispatch.accounts import Entry, Settlement
from node.dispatch.outcome import Ending
from node.errors import BudgetSpent, LedgerUnavailable, Refused
from node.money import Budget, nano_to_usd_text
from node.routing.values import Reason
from node.store.admission import Room, Spent
from node.store.audit import AuditRow, append
from node.store.database import Database, RowRejected, StoreUnavailable
from node.store.identity import Identity, take_identity
from node.store.rows import END, INSERT_OUT, INSERT_OVER, audit_row, dispatched_row, end_values, ended_row
from node.store.schema import IS_OUT, AuditEvent, State, calls
from node.store.windows import hour_of, seconds_until_next

_log = logging.getLogger("spillway.ledger")

_MOST_AT_ONCE: Final = 512
# How long a request waits for its reservation: longer than a busy disk takes.
_PATIENCE_S: Final = 2.0
_RETRY_S: Final = 1.0
# Nobody waits for what has ended: it rides in the next commit that somebody does wait for, or goes alone after this.
_LINGER_S: Final = 0.05
# What is free and over is kept in memory while the database is away; beyond this many the oldest are forgotten.
_MOST_KEPT: Final = 100_000

_NOT_SENT: Final = Settlement(charged_nano_usd=0, ending=Ending.CLIENT_CLOSED)


@dataclass(frozen=True, slots=True)
class _Admit:
    entry: Entry
    budget: Budget
    told: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _End:
    entry_id: str
    settlement: Settlement
    state: State
    ended_us: int


@dataclass(frozen=True, slots=True)
class _Note:
    entry: Entry
    settlement: Settlement
    ended_us: int


_Write = _End | _Note | AuditRow


@dataclass(slots=True)
class _Batch:
    """What is handed to the thread at once."""

    admits: list[_Admit] = field(default_factory=list)
    writes: list[_Write] = field(default_factory=list)


_Told = tuple[asyncio.Future[None], Entry, Refused | None]


class SqlLedger:
    """The `Ledger` over a database. `node_budget` is asked for each commit; `unix_ns` is the wall clock.

    `start()` returns at once: the database is opened by the thread, and so is one that comes back.
    """

    def __init__(
        self, database: Database, *, node_budget: Callable[[], Budget], unix_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._database = database
        self._node_budget = node_budget
        self._unix_ns = unix_ns
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._next = _Batch()
        self._handing_over: asyncio.Handle | None = None
        self._kept: deque[_Write] = deque()
        self._identity: Identity | None = None
        self._last_us = 0
        self._down: str | None = None
        self._retry_s = 0.0
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self.forgotten = 0

    # The event loop's side ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write; to be called on the event loop that will use it."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Write what is left, and let go of the database."""
        if self._thread.is_alive():
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    @property
    def available(self) -> bool:
        """Whether it can be written to, as far as is known; now and then one call is let through to find out."""
        return self._down is None or time.monotonic() >= self._retry_s

    @property
    def is_down(self) -> bool:
        """Whether it cannot be written to, as far as is known."""
        return self._down is not None

    @property
    def kept(self) -> int:
        """How many rows wait in memory to be written."""
        return len(self._kept)

    def document(self) -> dict[str, Any]:
        """How it stands, for the statistics."""
        return {"available": self._down is None, "reason": self._down, "kept": len(self._kept), "lost": self.forgotten}

    async def admit(self, entry: Entry, budget: Budget) -> None:
        """Return once `entry` is written down at its worst case. Raises `BudgetSpent` and `LedgerUnavailable`."""
        if not self.available:
            self.refused(entry, Reason.LEDGER_UNAVAILABLE)
            raise _unavailable()
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        if not self._next.admits:
            self._drop_handle()
            self._handing_over = loop.call_soon(self._hand_over)
        self._next.admits.append(_Admit(entry, budget, told))
        await told

    def settle(self, entry_id: str, settlement: Settlement) -> None:
        """An admitted attempt has ended, and cost something."""
        self._write(_End(entry_id, settlement, State.SETTLED, self._now_us()))

    def release(self, entry_id: str, settlement: Settlement) -> None:
        """An admitted attempt came to nothing."""
        self._write(_End(entry_id, settlement, State.RELEASED, self._now_us()))

    def note(self, entry: Entry, settlement: Settlement) -> None:
        """An attempt that costs nothing has ended."""
        self._write(_Note(entry, settlement, self._now_us()))

    def refused(self, entry: Entry, rule: Reason) -> None:
        """An attempt was decided to leave, and may not."""
        self.audit(self._refusal(entry, rule))

    def audit(self, row: AuditRow) -> None:
        """Add a row to the audit chain, before long."""
        self._write(row)

    @property
    def node(self) -> str:
        """By what name this node signs its rows; empty before the data folder could be read."""
        return self._identity.id if self._identity is not None else ""

    def _now_us(self) -> int:
        return self._unix_ns() // 1000

    def _refusal(self, entry: Entry, rule: Reason) -> AuditRow:
        return audit_row(entry, AuditEvent.REFUSED, rule.value, self.node, self._now_us())

    def _write(self, write: _Write) -> None:
        self._next.writes.append(write)
        if self._handing_over is None and self._loop is not None:
            self._handing_over = self._loop.call_later(_LINGER_S, self._hand_over)

    def _hand_over(self) -> None:
        self._drop_handle()
        batch, self._next = self._next, _Batch()
        self._queue.put(batch)
        if batch.admits and self._loop is not None:
            self._loop.call_later(_PATIENCE_S, self._give_up, batch.admits)

    def _drop_handle(self) -> None:
        if self._handing_over is not None:
            self._handing_over.cancel()
            self._handing_over = None

    def _give_up(self, admits: list[_Admit]) -> None:
        for admit in admits:
            if not admit.told.done():
                self.refused(admit.entry, Reason.LEDGER_UNAVAILABLE)
                admit.told.set_exception(_unavailable())

    def _tell(self, told: list[_Told]) -> None:
        for future, entry, refusal in told:
            if not future.done():
                if refusal is None:
                    future.set_result(None)
                else:
                    future.set_exception(refusal)
            elif refusal is None:  # written down, and nobody is there to send it
                self.release(entry.id, _NOT_SENT)

    # The thread's side -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing or not self._queue.empty():
                admits, writes = self._gather()
                self._work(admits, writes)
                while self._kept and self._down is None:
                    self._work([], [])
            if self._kept:
                self._work([], [])
                _log.critical("%d calls that have ended could not be written down: %s", len(self._kept), self._down)
        finally:  # also by a bug of ours: then it is closed for good
            self._down, self._retry_s = self._down or "it has ended", math.inf
            self._database.close()
            if self._identity is not None:
                self._identity.give_back()

    def _gather(self) -> tuple[list[_Admit], list[_Write]]:
        """What has come in: waits for the first, and no longer than until what is kept is to be tried again."""
        admits: list[_Admit] = []
        writes: list[_Write] = []
        waits = bool(self._kept) or self._identity is None
        if self._identity is None and self._retry_s == 0.0:
            return admits, writes  # open at once
        try:
            batch = self._queue.get(timeout=_RETRY_S if waits else None)
            while batch is not None:
                admits += batch.admits
                writes += batch.writes
                if len(admits) + len(writes) >= _MOST_AT_ONCE:
                    return admits, writes
                batch = self._queue.get_nowait()
            self._closing = True
        except queue.Empty:
            pass
        return admits, writes

    def _work(self, admits: list[_Admit], writes: list[_Write]) -> None:
        self._kept.extend(writes)
        admits = [each for each in admits if not each.told.done()]
        kept = list(islice(self._kept, _MOST_AT_ONCE))
        if not admits and not kept and self._identity is not None:
            return
        try:
            told = self._commit(admits, kept)
        except RowRejected as error:
            told = self._one_by_one(admits, kept, error)
        except StoreUnavailable as error:
            self._is_down(str(error))
            told = [(each.told, each.entry, _unavailable()) for each in admits]
            for each in admits:
                # A server that went away in the middle of a commit may have done it all the same.
                self._kept.append(_End(each.entry.id, _NOT_SENT, State.RELEASED, self._now_us()))
                self._kept.append(self._refusal(each.entry, Reason.LEDGER_UNAVAILABLE))
            self._forget_the_oldest()
        else:
            self._written(len(kept))
        self._deliver(told)

    def _written(self, count: int) -> None:
        for _ in range(count):
            self._kept.popleft()
        if self._down is not None:
            _log.warning("the ledger is back: calls may leave again")
            self._down = None

    def _is_down(self, reason: str) -> None:
        if self._down is None:
            _log.error("the ledger cannot be written, so nothing that costs money leaves: %s", reason)
        self._down = reason
        self._retry_s = time.monotonic() + _RETRY_S

    def _forget_the_oldest(self) -> None:
        """Keep within bounds; what was paid for is never forgotten."""
        excess = len(self._kept) - _MOST_KEPT
        if excess <= 0:
            return
        left: deque[_Write] = deque()
        for each in self._kept:
            if excess and not isinstance(each, _End):
                excess -= 1
                self.forgotten += 1
            else:
                left.append(each)
        self._kept = left

    def _deliver(self, told: list[_Told]) -> None:
        if told and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell, told)

    def _one_by_one(self, admits: list[_Admit], writes: list[_Write], cause: RowRejected) -> list[_Told]:
        """One row is wrong: the others are not to suffer for it."""
        told: list[_Told] = []
        if len(admits) + len(writes) == 1:
            _log.critical("the ledger did not take a row: %s", cause)
            self._written(len(writes))
            return [(each.told, each.entry, _unavailable()) for each in admits]
        for write in writes:
            try:
                self._commit([], [write])
            except RowRejected as error:
                _log.critical("the ledger did not take a row: %s", error)
            self._written(1)
        for admit in admits:
            try:
                told += self._commit([admit], [])
            except RowRejected as error:
                _log.critical("the ledger did not take a row: %s", error)
                told.append((admit.told, admit.entry, _unavailable()))
        return told

    def _commit(self, admits: list[_Admit], writes: list[_Write]) -> list[_Told]:
        """Write all of it, or nothing: raises `StoreUnavailable`, and `RowRejected` where a row is to blame."""
        node = self._opened().id
        told: list[_Told] = []
        with self._database.committing() as transaction:
            now_us = self._last_us = max(self._last_us, self._now_us())
            END.run(
                transaction,
                [
                    end_values(each.entry_id, each.settlement, each.state, each.ended_us)
                    for each in writes
                    if isinstance(each, _End)
                ],
            )
            audits = [each for each in writes if isinstance(each, AuditRow)]
            rows = []
            room = Room(transaction, self._node_budget(), hour_of(now_us))
            for admit in admits:
                entry, refusal = admit.entry, None
                try:
                    room.take(entry.caller, admit.budget, entry.reserved_nano_usd)
                except Spent as spent:
                    refusal = _spent(spent, entry, now_us)
                    audits.append(audit_row(entry, AuditEvent.REFUSED, Reason.BUDGET_SPENT.value, node, now_us))
                else:
                    rows.append(dispatched_row(entry, node, now_us))
                    audits.append(audit_row(entry, AuditEvent.LET_OUT, entry.rule.value, node, now_us))
                told.append((admit.told, entry, refusal))
            INSERT_OUT.run(transaction, rows)
            INSERT_OVER.run(
                transaction,
                [
                    ended_row(each.entry, each.settlement, node, each.ended_us)
                    for each in writes
                    if isinstance(each, _Note)
                ],
            )
            append(transaction, audits)
        return told

    def _opened(self) -> Identity:
        if self._identity is not None:
            return self._identity
        self._database.open()
        try:
            identity = take_identity(self._database.place.folder)
        except OSError as error:
            raise StoreUnavailable(f"{self._database.place.folder}: {error.strerror or error}") from error
        try:
            with self._database.writing() as connection:
                orphaned = _take_over(connection, [identity.id, *identity.dead], self._now_us())
                self._last_us = connection.scalar(select(func.max(calls.c.at_us)).where(_in_last_hour())) or 0
        except StoreUnavailable:
            identity.give_back()
            raise
        identity.settled()
        if orphaned:
            _log.warning("%d calls were out when a node of this folder ended: they count at their worst case", orphaned)
        self._identity = identity
        return identity


def _take_over(connection: Connection, nodes: list[str], now_us: int) -> int:
    """Orphan what nodes that are no more had out. What they count for stays: the worst case."""
    return connection.execute(
        update(calls).where(calls.c.node.in_(nodes), IS_OUT).values(state=State.ORPHANED, ended_us=now_us)
    ).rowcount


def _in_last_hour() -> Any:
    return calls.c.hour == select(func.max(calls.c.hour)).scalar_subquery()


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable(
        "The request would have to leave for the cloud, and what it costs cannot be written down at the moment.",
        rule=Reason.LEDGER_UNAVAILABLE.value,
        retry_after_s=_RETRY_S,
    )


def _spent(spent: Spent, entry: Entry, now_us: int) -> BudgetSpent:
    whose = "this node's" if spent.caller is None else "this key's"
    return BudgetSpent(
        f"The request could cost up to {nano_to_usd_text(entry.reserved_nano_usd)} dollars in the cloud, and {whose} "
        f"budget of {nano_to_usd_text(spent.limit_nano_usd)} dollars per {spent.window} has less left.",
        rule=Reason.BUDGET_SPENT.value,
        retry_after_s=seconds_until_next(spent.window, now_us),
    )
