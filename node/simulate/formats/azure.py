"""The Azure LLM inference traces of 2023 and 2024: CSV with `TIMESTAMP,ContextTokens,GeneratedTokens`.

Times are written `2023-11-16 18:17:03.9799600`, those of 2024 with six digits and `+00:00`.
Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and AzureLLMInferenceDataset2024.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from node.simulate.formats.ordered import Row, in_order
from node.simulate.formats.source import csv_rows, refusal, shown, tokens_of
from node.simulate.values import TraceRequest

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: Path) -> Iterator[TraceRequest | None]:
    """The requests at `path`, sorted, time counted from the earliest; None for a row with no prompt or no output.

    Raises `SettingsError` naming file, line, column and reason.
    """
    return in_order(path, "TIMESTAMP", _rows(path))


def _rows(path: Path) -> Iterator[Row]:
    start: datetime | None = None
    for line, (timestamp, prompt, output) in csv_rows(path, COLUMNS):
        try:
            at = datetime.fromisoformat(timestamp.strip())  # digits beyond the sixth are cut
        except ValueError:
            raise refusal(path, f"not a time: {shown(timestamp)}", line=line, column="TIMESTAMP") from None
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        if start is None:
            start = at
        yield Row(
            line,
            (at - start).total_seconds(),
            tokens_of(path, line, "ContextTokens", prompt),
            tokens_of(path, line, "GeneratedTokens", output),
        )
