"""Whether the audit chain is whole, and its rows for an auditor."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from sqlalchemy import Connection, Row, select

from node.progress import Progress
from node.store.audit import GENESIS, Head, digest, head
from node.store.schema import AuditEvent, audit

_PAGE: Final = 2000
_EVENTS: Final = frozenset(event.value for event in AuditEvent)
COLUMNS: Final = ("at", *audit.columns.keys())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found: `rows` that hold, the last of them, and where and why the chain breaks then (None: whole).

    `events` counts the rows that hold by what they say.
    """

    rows: int
    head: Head
    events: dict[str, int]
    broken_at: int | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows an export has. None: all. Microseconds since 1970, `until_us` is the first that is not in it."""

    since_us: int | None = None
    until_us: int | None = None
    caller: str | None = None
    provider: str | None = None
    event: AuditEvent | None = None


def verify(connection: Connection, expect: Head | None = None, progress: Progress | None = None) -> Verdict:
    """Walk the whole chain, a page of rows at a time, and stop where it breaks.

    `expect` is a head that was kept elsewhere: it must still be in the chain, else the end was cut off, or the chain
    was written anew. Rows that are appended meanwhile may or may not be looked at.
    """
    at = Head(0, GENESIS)
    events: dict[str, int] = {}
    rows = _rows(connection, Choice())
    if progress is not None:
        progress.now("looking through the chain", total=head(connection).seq)
        rows = progress.counting(rows)
    for row in rows:
        if why := _fault(at, row, expect):
            return Verdict(at.seq, at, events, at.seq + 1, why)
        events[row.event] = events.get(row.event, 0) + 1
        at = Head(row.seq, row.hash)
    if expect is not None and expect.seq > at.seq:
        why = (
            f"the end is cut off: the chain ends at row {at.seq}, but row {expect.seq} was there when its head was kept"
        )
        return Verdict(at.seq, at, events, at.seq + 1, why)
    return Verdict(at.seq, at, events)


def write_csv(connection: Connection, choice: Choice, to: TextIO) -> int:
    """The chosen rows as CSV with a header; returns how many."""
    writer = csv.writer(to, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for row in _rows(connection, choice):
        writer.writerow((_iso(row.at_us), *row))
        count += 1
    return count


def write_jsonl(connection: Connection, choice: Choice, to: TextIO) -> int:
    """The chosen rows as JSON Lines; returns how many."""
    count = 0
    for row in _rows(connection, choice):
        document = dict(zip(COLUMNS, (_iso(row.at_us), *row), strict=True))
        to.write(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")
        count += 1
    return count


def _rows(connection: Connection, choice: Choice) -> Iterator[Row[Any]]:
    """In the chain's order. By pages, so that no cursor stays open however long the reader takes."""
    query = select(audit).order_by(audit.c.seq).limit(_PAGE)
    if choice.since_us is not None:
        query = query.where(audit.c.at_us >= choice.since_us)
    if choice.until_us is not None:
        query = query.where(audit.c.at_us < choice.until_us)
    if choice.caller is not None:
        query = query.where(audit.c.caller == choice.caller)
    if choice.provider is not None:
        query = query.where(audit.c.provider == choice.provider)
    if choice.event is not None:
        query = query.where(audit.c.event == choice.event.value)
    last = head(connection).seq
    after: int | None = None
    while True:
        page = connection.execute(query if after is None else query.where(audit.c.seq > after)).all()
        for row in page:
            if row.seq > last:
                return
            yield row
        if len(page) < _PAGE:
            return
        after = page[-1].seq


def _fault(before: Head, row: Row[Any], expect: Head | None) -> str | None:
    seq = before.seq + 1
    if row.seq != seq:
        return f"row {seq} is missing: row {row.seq} follows row {before.seq}"
    if row.event not in _EVENTS:
        return f"row {seq} says {row.event!r}, which is no event"
    if digest(before.hash, tuple(row)[:-1]) != row.hash:
        return f"the hash of row {seq} does not follow from row {before.seq} and what it says: one of them was changed"
    if expect is not None and expect.seq == seq and expect.hash != row.hash:
        return f"row {seq} has another hash than the head that was kept: the chain was written anew up to there"
    return None


def _iso(at_us: int) -> str:
    seconds, microseconds = divmod(at_us, 1_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
    return moment.isoformat(timespec="microseconds")
