"""A usage report as a document, as CSV and as a table. Money is in dollars with every digit there is."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from node.money import nano_to_usd_text
from node.store.moments import moment_of
from node.store.usage import Amounts, Line, Report


def as_document(report: Report) -> dict[str, Any]:
    """A JSON-ready document: the question, its lines, the total."""
    question = report.question
    return {
        "since": None if question.since_us is None else moment_of(question.since_us).isoformat(),
        "until": None if question.until_us is None else moment_of(question.until_us).isoformat(),
        "key": question.caller,
        "by": list(question.by),
        "lines": [_named(report, line) | _document(line.amounts) for line in report.lines],
        "total": _document(report.total),
    }


def as_csv(report: Report) -> str:
    """A header, a row for each line; without lines, the total's."""
    lines = report.lines or ((Line((), report.total),) if not report.question.by else ())
    columns = (*report.question.by, *_document(Amounts()))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        document = _named(report, line) | _document(line.amounts)
        writer.writerow([_cell(document[column]) for column in columns])
    return text.getvalue()


def as_table(report: Report) -> str:
    """What a person reads: a line each, the total, and what is not settled or not known below it."""
    if report.total.attempts == 0:
        return "no calls in this period"
    lines = [*report.lines, Line(("total",) + ("",) * (len(report.question.by) - 1), report.total)]
    columns: list[tuple[str, list[str], bool]] = [
        (part, [line.about[index] for line in lines], False) for index, part in enumerate(report.question.by)
    ]
    if not report.question.by:
        columns.append(("", ["total"], False))
    columns += [(name, [f"{value(line.amounts):,}" for line in lines], True) for name, value in _COUNTS]
    columns.append(("local", [_percent(line.amounts.share_here_of_requests) for line in lines], True))
    columns.append(("local tok", [_percent(line.amounts.share_here_of_tokens) for line in lines], True))
    for name, value in _PAID:
        columns.append((name, _aligned([value(line.amounts) for line in lines]), True))
    widths = [max(len(name), *map(len, cells)) for name, cells, _ in columns]
    rows = [[name for name, _, _ in columns]] + [
        [cells[index] for _, cells, _ in columns] for index in range(len(lines))
    ]
    text = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, (_, _, right) in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in rows
    ]
    if report.lines:
        text.insert(-1, "-" * sum(widths, 2 * (len(widths) - 1)))
    return "\n".join([*text, *_notes(report.total)])


_COUNTS: Final[tuple[tuple[str, Callable[[Amounts], int]], ...]] = (
    ("requests", lambda each: each.requests),
    ("attempts", lambda each: each.attempts),
    ("tokens in", lambda each: each.prompt_tokens),
    ("cached", lambda each: each.cached_tokens),
    ("out", lambda each: each.completion_tokens),
)
_PAID: Final[tuple[tuple[str, Callable[[Amounts], int]], ...]] = (
    ("spent $", lambda each: each.spent_nano_usd),
    ("all cloud $", lambda each: each.cloud_nano_usd),
    ("at list $", lambda each: each.list_nano_usd),
    ("saved $", lambda each: each.saved_nano_usd),
)


def _notes(total: Amounts) -> list[str]:
    notes = []
    if total.open:
        notes.append(f"open: {total.open:,} calls are out, at worst {_usd(total.open_nano_usd)} $ more")
    if total.orphaned:
        notes.append(
            f"orphaned: {total.orphaned:,} calls were out when a node died, counted at their worst case, "
            f"{_usd(total.orphaned_nano_usd)} $; settle them with `spillway usage reconcile`"
        )
    if total.unpriced:
        notes.append(f"unpriced: {total.unpriced:,} answers have no cloud price, and nothing is saved by them here")
    if total.estimated:
        notes.append(f"estimated: of {total.estimated:,} calls the tokens were counted here, not reported")
    return notes


def _named(report: Report, line: Line) -> dict[str, Any]:
    return {str(part): value for part, value in zip(report.question.by, line.about, strict=True)}


def _document(amounts: Amounts) -> dict[str, Any]:
    return {
        "requests": amounts.requests,
        "attempts": amounts.attempts,
        "answered": amounts.answered,
        "answered_local": amounts.answered_here,
        "prompt_tokens": amounts.prompt_tokens,
        "completion_tokens": amounts.completion_tokens,
        "cached_tokens": amounts.cached_tokens,
        "local_share_of_requests": _rounded(amounts.share_here_of_requests),
        "local_share_of_tokens": _rounded(amounts.share_here_of_tokens),
        "spent_usd": _raw_usd(amounts.spent_nano_usd),
        "cloud_usd": _raw_usd(amounts.cloud_nano_usd),
        "list_usd": _raw_usd(amounts.list_nano_usd),
        "saved_usd": _raw_usd(amounts.saved_nano_usd),
        "unpriced": amounts.unpriced,
        "estimated": amounts.estimated,
        "open": amounts.open,
        "open_usd": _raw_usd(amounts.open_nano_usd),
        "orphaned": amounts.orphaned,
        "orphaned_usd": _raw_usd(amounts.orphaned_nano_usd),
    }


def _cell(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    text = "" if value is None else value
    # A spreadsheet takes a name that begins so for a formula.
    return f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _aligned(amounts: Sequence[int]) -> list[str]:
    """Exact dollars, the points one under the other, at least cents."""
    texts = [nano_to_usd_text(each) for each in amounts]
    places = max(2, *(len(text.partition(".")[2]) for text in texts))
    aligned = []
    for text in texts:
        whole, _, fraction = text.partition(".")
        sign = "-" if whole.startswith("-") else ""
        aligned.append(f"{sign}{int(whole.removeprefix('-')):,}.{fraction:0<{places}}")
    return aligned


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 6)


def _usd(nano_usd: int) -> str:
    return nano_to_usd_text(nano_usd)


def _raw_usd(nano_usd: int) -> msgspec.Raw:
    return msgspec.Raw(nano_to_usd_text(nano_usd).encode())
