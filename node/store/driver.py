"""Transactions and statements by the driver alone: what SQLAlchemy does around each costs more than the database.

It still writes the statements, in the words of either database: once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import ClauseElement, Dialect

_Values = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Transaction:
    """One that has begun. `cursor` is the driver's (PEP 249)."""

    cursor: Any
    dialect: Dialect


class Statement:
    """A statement whose values are always `names`, in what the driver takes as they are."""

    def __init__(self, statement: ClauseElement, names: Sequence[str] = ()) -> None:
        self._statement = statement
        self._names = list(names)
        self._compiled: dict[str, tuple[str, _Values]] = {}

    def run(self, transaction: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each row."""
        if rows:
            sql, values = self._for(transaction.dialect)
            transaction.cursor.executemany(sql, [values(row) for row in rows])

    def first(self, transaction: Transaction, **row: Any) -> tuple[Any, ...] | None:
        """Run it, and return the first row that it finds."""
        sql, values = self._for(transaction.dialect)
        transaction.cursor.execute(sql, values(row))
        found: tuple[Any, ...] | None = transaction.cursor.fetchone()
        return found

    def _for(self, dialect: Dialect) -> tuple[str, _Values]:
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled: Any = self._statement.compile(dialect=dialect, column_keys=self._names or None)
            known = self._compiled[dialect.name] = str(compiled), _in_order(compiled.positiontup)
        return known


def _in_order(names: Sequence[str] | None) -> _Values:
    """How a row's values are given: as a tuple in the order of `names`, or by name where that is None."""
    if names is None:
        return dict
    return itemgetter(*names) if len(names) > 1 else lambda row: tuple(row[name] for name in names)
