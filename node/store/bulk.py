"""A statement for many rows at once, compiled once: what SQLAlchemy does for every row costs more than the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql.dml import UpdateBase


@dataclass(frozen=True, slots=True)
class _Compiled:
    sql: str
    order: tuple[str, ...] | None  # of the values; None where they go by name


class BulkStatement:
    """An insert or update whose rows have exactly the values `names`, in what the driver takes as they are."""

    def __init__(self, statement: UpdateBase, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = list(names)
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each row."""
        if not rows:
            return
        known = self._compiled.get(connection.dialect.name)
        if known is None:
            known = self._compiled[connection.dialect.name] = self._compile(connection)
        if known.order is None:
            connection.exec_driver_sql(known.sql, [dict(row) for row in rows])
        else:
            connection.exec_driver_sql(known.sql, [tuple([row[name] for name in known.order]) for row in rows])

    def _compile(self, connection: Connection) -> _Compiled:
        compiled = self._statement.compile(dialect=connection.dialect, column_keys=self._names)
        order = tuple(compiled.positiontup) if compiled.positional and compiled.positiontup else None
        return _Compiled(str(compiled), order)
