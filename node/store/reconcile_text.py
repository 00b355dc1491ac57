"""What a statement and the ledger differ in, for people and as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Final

from node.money import nano_to_usd_text
from node.store.moments import moment_of
from node.store.reconcile import Difference, Ours, Reconciliation, Sureness
from node.store.schema import State
from node.store.statement import Item

_COLUMNS: Final = ("difference", "line", "call", "caller", "model", "time", "billed_usd", "ours_usd", "how_sure")
_MOST_SHOWN: Final = 50


def has_differences(found: Reconciliation) -> bool:
    """Whether there is anything to look at."""
    return next(_rows(found), None) is not None


def differences_csv(found: Reconciliation) -> str:
    """A row for each difference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(found))
    return text.getvalue()


def differences_text(found: Reconciliation) -> str:
    """The differences, at most the first fifty of them, and what it all comes to."""
    rows = list(_rows(found))
    shown = [_COLUMNS, *rows[:_MOST_SHOWN]] if rows else []
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in shown]
    if len(rows) > _MOST_SHOWN:
        lines.append(f"... and {len(rows) - _MOST_SHOWN:,} more; all of them with --csv")
    sure = Counter(match.sureness for match in found.matches)
    how = ", ".join(f"{sure[each]:,} {_HOW[each]}" for each in Sureness if sure[each]) or "none"
    kinds = Counter(row[0] for row in rows)
    what = ", ".join(f"{kinds[each]:,} {each}" for each in Difference if kinds[each]) or "none"
    billed, charged = found.billed_nano_usd, found.charged_nano_usd
    return "\n".join(
        [
            *lines,
            f"calls found: {len(found.matches):,} ({how})",
            f"differences: {what}",
            f"billed {nano_to_usd_text(billed)} $, ours {nano_to_usd_text(charged)} $, "
            f"difference {nano_to_usd_text(billed - charged)} $",
        ]
    )


_HOW: Final = {
    Sureness.ID: "by id",
    Sureness.SURE: "by model, tokens and time, no other possible",
    Sureness.LIKELY: "likely: equal ones may be exchanged",
    Sureness.GUESS: "guessed, and not written",
}


def _rows(found: Reconciliation) -> Iterator[tuple[str, ...]]:
    for match in found.matches:
        if match.difference is not None:
            yield _row(match.difference, match.item, match.ours, match.sureness)
    for item in found.unknown:
        yield _row(Difference.UNKNOWN, item, None, "")
    for item in found.duplicates:
        yield _row(Difference.DUPLICATE, item, None, "")
    for ours in found.unbilled:
        orphan = ours.state == State.ORPHANED
        yield _row(Difference.ORPHAN_UNBILLED if orphan else Difference.UNBILLED, None, ours, "")


def _row(what: Difference, item: Item | None, ours: Ours | None, how_sure: str) -> tuple[str, ...]:
    at_us = ours.at_us if ours is not None else item.at_us if item is not None else None
    model = (item.model if item is not None else None) or (ours.served_model if ours is not None else "")
    return (
        what,
        "" if item is None else str(item.line),
        ours.id if ours is not None else (item.id or "") if item is not None else "",
        "" if ours is None else ours.caller,
        model or "",
        "" if at_us is None else moment_of(at_us).isoformat(timespec="seconds"),
        "" if item is None else nano_to_usd_text(item.nano_usd),
        "" if ours is None else nano_to_usd_text(ours.charged_nano_usd),
        how_sure,
    )
