"""The audit chain: a row for everything that was let out, or refused to leave, each bound to the one before.

The hash of a row is SHA-256 over the hash of the row before, as 64 hexadecimal digits, and the row itself: a JSON array
of its fields in the order of the table, without blanks, in UTF-8. The row before the first has the hash `GENESIS`. So a
row that was changed, taken out or put in breaks the chain; only a cut-off end does not, and for that the operator keeps
the head (``spillway audit verify --expect``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import msgspec
from sqlalchemy import Connection, text

from node.store.driver import Statement, Transaction
from node.store.schema import AuditEvent, audit

GENESIS: Final = "0" * 64

_HEAD: Final = text("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
_LAST: Final = Statement(_HEAD)
_INSERT: Final = Statement(audit.insert(), [column.name for column in audit.columns])
_FIELDS: Final = tuple(column.name for column in audit.columns if column.name not in ("seq", "hash"))
_VALUES: Final = attrgetter(*_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One decision. `rule` is why it was let out, or what refused it; nothing here is text of a prompt or an answer.

    `at_us` is in UTC microseconds since 1970. `provider`, `model` and `reserved_nano_usd` are None where no provider
    was chosen.
    """

    at_us: int
    node: str
    event: AuditEvent
    request_id: str
    caller: str
    residency: str
    rule: str
    provider: str | None
    model: str | None
    prompt_bytes: int
    reserved_nano_usd: int | None


@dataclass(frozen=True, slots=True)
class Head:
    """The last row of the chain: what an operator keeps elsewhere to notice a cut-off end."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def chained(before: str, seq: int, row: AuditRow) -> str:
    """The hash of `row`, which follows the row of hash `before`."""
    return digest(before, (seq, *_VALUES(row)))


def digest(before: str, fields: Sequence[object]) -> str:
    """The hash of a row of these `fields`, `seq` first, which follows the row of hash `before`."""
    return hashlib.sha256(before.encode("ascii") + msgspec.json.encode(fields)).hexdigest()


def head(connection: Connection) -> Head:
    """The last row there is; number 0 and `GENESIS` when there is none."""
    last = connection.execute(_HEAD).first()
    return Head(0, GENESIS) if last is None else Head(last.seq, last.hash)


def append(transaction: Transaction, rows: Sequence[AuditRow]) -> None:
    """Add `rows` at the end of the chain, in the caller's transaction, which must be the only one that writes."""
    if not rows:
        return
    last = _LAST.first(transaction)
    at = Head(0, GENESIS) if last is None else Head(*last)
    inserted = []
    for row in rows:
        at = Head(at.seq + 1, chained(at.hash, at.seq + 1, row))
        values = dict(zip(_FIELDS, _VALUES(row), strict=True))
        inserted.append(values | {"seq": at.seq, "event": row.event.value, "hash": at.hash})
    _INSERT.run(transaction, inserted)
