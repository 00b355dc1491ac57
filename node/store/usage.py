"""What was used and what it cost, from the rows of `calls`.

- A *request* is counted where its first attempt went, an *attempt* where it went itself; it is *answered* by the one
  attempt that ended well. *Here* means the engine and the answer cache.
- Tokens are those of all attempts. *Spent* is what settled attempts are charged; what is still out (*open*) and what
  nobody knows the price of (*orphaned*) stand apart, at their worst case.
- What the same work would have cost (`cloud_nano_usd`, `list_nano_usd`) leaves out, as the ledger does, what nobody was
  given: a retry or a copy is not work that an all-cloud setup would have paid twice. `unpriced` answers have no known
  cloud price. *Saved* is the cloud's price, less what was spent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, case, func, select

from node.store.moments import HOUR_US, day_text
from node.store.schema import State, calls

_HERE: Final = ("local", "cache")
_WORK: Final = ("done", "client_closed")


class Part(StrEnum):
    """What lines can be made by."""

    KEY = "key"
    MODEL = "model"
    BACKEND = "backend"
    DAY = "day"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Whose usage, of when (UTC microseconds, the end not included; None: no end), in lines by what."""

    by: tuple[Part, ...] = ()
    since_us: int | None = None
    until_us: int | None = None
    caller: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What is added up. Money in nano-dollars."""

    requests: int = 0
    attempts: int = 0
    answered: int = 0
    answered_here: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    work_tokens: int = 0
    work_tokens_here: int = 0
    spent_nano_usd: int = 0
    cloud_nano_usd: int = 0
    list_nano_usd: int = 0
    unpriced: int = 0
    estimated: int = 0
    open: int = 0
    open_nano_usd: int = 0
    orphaned: int = 0
    orphaned_nano_usd: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})

    @property
    def saved_nano_usd(self) -> int:
        """What was not paid because not everything went to the cloud; below zero where it was dearer."""
        return self.cloud_nano_usd - self.spent_nano_usd

    @property
    def share_here_of_requests(self) -> float | None:
        """Of the requests that were answered, how many were answered here; None without any."""
        return self.answered_here / self.answered if self.answered else None

    @property
    def share_here_of_tokens(self) -> float | None:
        """Of the tokens of answers, how many were computed here; None without any."""
        return self.work_tokens_here / self.work_tokens if self.work_tokens else None


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what it is about, a value for each part of the question in its order, and its amounts."""

    about: tuple[str, ...]
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Report:
    """The lines, sorted by what they are about, and their sum."""

    question: Question
    lines: tuple[Line, ...]
    total: Amounts


def read_usage(connection: Connection, question: Question) -> Report:
    """The answer to `question`. One pass over the rows of the period."""
    groups = [_COLUMNS[part].label(f"by_{part}") for part in question.by]
    query = select(*groups, *(_SUMS[each.name].label(each.name) for each in fields(Amounts)))
    if conditions := list(_conditions(question)):
        query = query.where(and_(*conditions))
    if groups:
        query = query.group_by(*groups)  # sorted below: PostgreSQL adds up faster without, and has orders of its own
    lines = []
    for row in connection.execute(query):
        values: tuple[Any, ...] = tuple(row)
        about = tuple(
            day_text(value) if part is Part.DAY else str(value)
            for part, value in zip(question.by, values, strict=False)
        )
        amounts = (int(value or 0) for value in values[len(groups) :])
        lines.append(Line(about, Amounts(**dict(zip((each.name for each in fields(Amounts)), amounts, strict=True)))))
    lines.sort(key=lambda line: line.about)
    total = sum((line.amounts for line in lines), Amounts())
    return Report(question, tuple(lines) if groups else (), total)


def _conditions(question: Question) -> Iterable[ColumnElement[bool]]:
    # The hour is what the index knows; the moment itself is exact.
    if question.since_us is not None:
        yield calls.c.hour >= question.since_us // HOUR_US
        yield calls.c.at_us >= question.since_us
    if question.until_us is not None:
        yield calls.c.hour <= question.until_us // HOUR_US
        yield calls.c.at_us < question.until_us
    if question.caller is not None:
        yield calls.c.caller == question.caller


_COLUMNS: Final[dict[Part, ColumnElement[Any]]] = {
    Part.KEY: calls.c.caller,
    Part.MODEL: calls.c.model,
    Part.BACKEND: calls.c.backend,
    Part.DAY: calls.c.hour // 24,
}
_settled = calls.c.state == State.SETTLED
_open = calls.c.state == State.DISPATCHED
_orphaned = calls.c.state == State.ORPHANED
_done = calls.c.ending == "done"
_work = calls.c.ending.in_(_WORK)
_here = calls.c.backend.in_(_HERE)
_tokens = func.coalesce(calls.c.prompt_tokens, 0) + func.coalesce(calls.c.completion_tokens, 0)


def _count(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.sum(case((condition, 1), else_=0))


def _sum(column: ColumnElement[Any], condition: ColumnElement[bool] | None = None) -> ColumnElement[Any]:
    return func.sum(column if condition is None else case((condition, column), else_=0))


_SUMS: Final[dict[str, ColumnElement[Any]]] = {
    "requests": _count(calls.c.parent_id.is_(None)),
    "attempts": func.count(),
    "answered": _count(_done),
    "answered_here": _count(_done & _here),
    "prompt_tokens": _sum(calls.c.prompt_tokens),
    "completion_tokens": _sum(calls.c.completion_tokens),
    "cached_tokens": _sum(calls.c.cached_tokens),
    "work_tokens": _sum(_tokens, _work),
    "work_tokens_here": _sum(_tokens, _work & _here),
    "spent_nano_usd": _sum(calls.c.charged_nano_usd, _settled),
    "cloud_nano_usd": _sum(calls.c.cloud_nano_usd),
    "list_nano_usd": _sum(calls.c.list_nano_usd),
    "unpriced": _count(_done & calls.c.cloud_nano_usd.is_(None)),
    "estimated": _count(calls.c.estimated),
    "open": _count(_open),
    "open_nano_usd": _sum(calls.c.charged_nano_usd, _open),
    "orphaned": _count(_orphaned),
    "orphaned_nano_usd": _sum(calls.c.charged_nano_usd, _orphaned),
}
