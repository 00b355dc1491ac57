"""Lines, CSV rows and numbers of a trace file, and how a bad one is refused: file, line, column, reason, in one line.

Nothing here holds more than one line, so a file may be larger than memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from node.errors import SettingsError

MAX_LINE_BYTES = 1 << 20  # a Mooncake line of a million tokens is 15 kB; beyond this, memory is at stake
MAX_TOKENS = 1_000_000_000
MAX_NUMBER = 1e10  # in seconds three centuries: more is a clock in the wrong unit

_Number = TypeVar("_Number", int, float)


def refusal(path: Path, what: str, *, line: int | None = None, column: str | None = None) -> SettingsError:
    """The error that says what is wrong with `path`, and where: `trace.csv, line 7, arrival_s: not a number: 'x'`."""
    where = str(path)
    if line is not None:
        where += f", line {line}"
    if column is not None:
        where += f", {column}"
    return SettingsError(f"{where}: {what}")


def shown(text: str) -> str:
    """`text` quoted for a message: at most 40 characters, and none that breaks the line."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of `path`, ends included, unpacked where its name ends in `.gz`; a byte order mark is dropped.

    Raises `SettingsError` where it cannot be read or unpacked, is not UTF-8, or a line passes `MAX_LINE_BYTES`.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES), b""), start=1):
                if len(line) == MAX_LINE_BYTES:
                    raise refusal(path, f"longer than {MAX_LINE_BYTES:,} bytes", line=number)
                text = line.decode()
                yield text if number > 1 else text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise refusal(path, "not UTF-8", line=number) from error
    except EOFError as error:
        raise refusal(path, "ends in the middle: not all of the gzip file is there") from error
    except (OSError, zlib.error) as error:
        raise refusal(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def csv_rows(
    path: Path, required: Sequence[str], optional: Mapping[str, str] | None = None
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line number and values of every row: the `required` columns first, then the `optional` ones with their defaults.

    Columns are found by the names in the header row, whatever their order; others are ignored, and so are blank lines.
    Raises `SettingsError` for a file without a header, a missing or repeated column, a row of another width than the
    header, quotes that do not close, and whatever `text_lines` refuses.
    """
    reader = csv.reader(text_lines(path), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise refusal(path, "empty: a header row was expected", line=1)
        _check_header(path, header, required, optional or {})
        width = len(header)
        absent = [default for name, default in (optional or {}).items() if name not in header]
        places = header + [name for name in (optional or {}) if name not in header]
        pick = cast(
            "itemgetter[tuple[str, ...]]", itemgetter(*(places.index(name) for name in (*required, *(optional or {}))))
        )
        for row in reader:
            if len(row) != width:
                if not row:
                    continue
                raise refusal(path, f"{len(row)} columns where the header has {width}", line=reader.line_num)
            row += absent
            yield reader.line_num, pick(row)
    except csv.Error as error:
        raise refusal(path, f"not CSV: {error}", line=reader.line_num) from error


def number_of(path: Path, line: int, column: str, text: str) -> float:
    """`text` as a number, if it is one a trace can hold. Raises `SettingsError` for anything else."""
    return number_within(path, line, column, _parsed(float, path, line, column, text))


def tokens_of(path: Path, line: int, column: str, text: str) -> int:
    """`text` as a number of tokens, if there can be that many. Raises `SettingsError` for anything else."""
    return tokens_within(path, line, column, _parsed(int, path, line, column, text))


def number_within(path: Path, line: int, column: str, number: float) -> float:
    """`number`, if it is one a trace can hold: 0 to `MAX_NUMBER`. Raises `SettingsError`."""
    return _within(MAX_NUMBER, path, line, column, number)


def tokens_within(path: Path, line: int, column: str, tokens: int) -> int:
    """`tokens`, if there can be that many: 0 to a billion. Raises `SettingsError`."""
    return _within(MAX_TOKENS, path, line, column, tokens)


def _parsed(kind: Callable[[str], _Number], path: Path, line: int, column: str, text: str) -> _Number:
    try:
        if "_" not in text:  # a digit separator to Python, to nobody else
            return kind(text)
    except ValueError:
        pass
    what = "a whole number" if kind is int else "a number"
    raise refusal(path, f"not {what}: {shown(text)}", line=line, column=column)


def _within(most: float, path: Path, line: int, column: str, number: _Number) -> _Number:
    if 0 <= number <= most:
        return number
    what = "negative" if number < 0 else f"more than {most:,.0f}" if number > 0 else "not a number"
    raise refusal(path, f"{what}: {shown(str(number))[1:-1]}", line=line, column=column)


def _opened(path: Path) -> BinaryIO:
    """`path` for reading bytes, through a buffer: reading lines from a `GzipFile` itself is Python, and slow."""
    if path.suffix == ".gz":
        return cast("BinaryIO", io.BufferedReader(gzip.open(path, "rb")))
    return path.open("rb")


def _check_header(path: Path, header: list[str], required: Sequence[str], optional: Mapping[str, str]) -> None:
    missing = [name for name in required if name not in header]
    if missing:
        columns = "column" if len(missing) == 1 else "columns"
        raise refusal(path, f"no {columns} {', '.join(missing)} among {shown(', '.join(header))}", line=1)
    for name in (*required, *optional):
        if header.count(name) > 1:
            raise refusal(path, "this column is there twice", line=1, column=name)
