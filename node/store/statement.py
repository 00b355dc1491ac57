"""A provider's statement as items: one CSV row per call, whatever the provider calls its columns.

    id        id, request_id, call_id, completion_id, response_id, generation_id
    time      time, timestamp, at_s, created, created_at, date, start_time, start_time_iso   a day, ISO, Unix s or ms
    model     model, model_name, model_id
    input     prompt_tokens, input_tokens, tokens_in
    output    completion_tokens, output_tokens, tokens_out
    amount    cost_usd, amount_usd, amount, cost, total_cost, amount_value, charge: in dollars; cost_nano_usd

Only the amount is needed, and an id, or model and tokens, to find the call by. No provider's export has been seen here:
the names are those of their APIs' fields, and `columns` names any other.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import Final

from node.errors import SettingsError
from node.money import NANO_PER_USD
from node.store.moments import DAY_US, is_day, us_of

_MOST_NANO_USD: Final = 10**18
_MILLISECONDS_FROM: Final = 10**11
# Less, as seconds, is before 1974: it is something else, such as 20261129.
_SECONDS_FROM: Final = 10**8


class Field(StrEnum):
    """What a statement can say of a call."""

    ID = "id"
    TIME = "time"
    MODEL = "model"
    INPUT = "input"
    OUTPUT = "output"
    AMOUNT = "amount"


_NAMES: Final[Mapping[Field, tuple[str, ...]]] = {
    Field.ID: ("id", "request_id", "call_id", "completion_id", "response_id", "generation_id"),
    Field.TIME: ("time", "timestamp", "at_s", "created", "created_at", "date", "start_time", "start_time_iso"),
    Field.MODEL: ("model", "model_name", "model_id"),
    Field.INPUT: ("prompt_tokens", "input_tokens", "tokens_in"),
    Field.OUTPUT: ("completion_tokens", "output_tokens", "tokens_out"),
    Field.AMOUNT: (
        *("cost_usd", "amount_usd", "cost_nano_usd", "amount", "cost", "total_cost", "amount_value", "charge"),
    ),
}
# A row that stands for several calls cannot be laid beside one.
_COUNTS: Final = ("num_model_requests", "n_requests", "requests", "request_count")
_CURRENCIES: Final = ("currency", "amount_currency")


@dataclass(frozen=True, slots=True)
class Item:
    """One billed call; None for what the statement does not say. `line` is its line in the file.

    It was at `at_us`, or within `within_us` after it where the statement has only the day.
    """

    line: int
    id: str | None
    at_us: int | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    nano_usd: int
    within_us: int = 0


def read_statement(path: Path, columns: Mapping[Field, str]) -> list[Item]:
    """The items of the CSV file at `path`. `columns` names those that are not found by themselves.

    Raises `SettingsError` naming line and column: a file that is not CSV, a column that is missing, a value that is
    none, another currency than dollars, rows that sum up several calls.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if not header:
                raise SettingsError(f"{path}: empty: a header row was expected")
            return list(_items(path, reader, _places(path, header, columns), header))
    except csv.Error as error:
        raise SettingsError(f"{path}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8") from error
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from error


def _places(path: Path, header: list[str], columns: Mapping[Field, str]) -> dict[Field, int]:
    plain = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") for name in header]
    places: dict[Field, int] = {}
    for field, named in columns.items():
        if named not in header:
            raise SettingsError(f"{path}: there is no column {named!r}; there are {', '.join(header)[:200]}")
        places[field] = header.index(named)
    for field, names in _NAMES.items():
        found = next((plain.index(name) for name in names if name in plain), None)
        if found is not None:
            places.setdefault(field, found)
    if Field.AMOUNT not in places:
        raise SettingsError(f"{path}: no column is known to hold the amount; name it with --column amount=NAME")
    if Field.ID not in places and not {Field.MODEL, Field.INPUT, Field.OUTPUT} <= places.keys():
        raise SettingsError(f"{path}: neither an id nor model and tokens are there; name them with --column FIELD=NAME")
    return places


def _items(path: Path, reader: Iterator[list[str]], places: Mapping[Field, int], header: list[str]) -> Iterator[Item]:
    lowered = [name.strip().lower() for name in header]
    counts = [lowered.index(name) for name in _COUNTS if name in lowered]
    currencies = [lowered.index(name) for name in _CURRENCIES if name in lowered]
    in_nano = header[places[Field.AMOUNT]].strip().lower().endswith("nano_usd")
    for line, row in enumerate(reader, 2):
        if not any(row):
            continue
        if len(row) != len(header):
            raise SettingsError(f"{path}, line {line}: {len(row)} columns where the header has {len(header)}")
        if any(row[place].strip() not in ("", "1") for place in counts):
            raise SettingsError(
                f"{path}, line {line}: sums up several calls, which cannot be laid beside single ones; compare its "
                "totals with `spillway usage --by day model`"
            )
        if any(row[place].strip().lower() not in ("", "usd", "$") for place in currencies):
            raise SettingsError(f"{path}, line {line}: not in dollars; convert it first")
        texts = {field: row[place].strip() for field, place in places.items()}
        try:
            yield Item(
                line=line,
                id=texts.get(Field.ID) or None,
                at_us=_moment(texts.get(Field.TIME)),
                model=texts.get(Field.MODEL) or None,
                prompt_tokens=_tokens(texts.get(Field.INPUT)),
                completion_tokens=_tokens(texts.get(Field.OUTPUT)),
                nano_usd=_amount(texts[Field.AMOUNT], in_nano=in_nano),
                within_us=DAY_US - 1 if is_day(texts.get(Field.TIME, "")) else 0,
            )
        except ValueError as error:
            raise SettingsError(f"{path}, line {line}: {error}") from error


def _amount(text: str, *, in_nano: bool) -> int:
    try:
        amount = Decimal(text.removeprefix("$").replace(",", ""))
        nano_usd = int((amount if in_nano else amount * NANO_PER_USD).to_integral_value(ROUND_HALF_EVEN))
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError(f"not an amount: {text[:40]!r}") from None
    if not 0 <= nano_usd <= _MOST_NANO_USD:
        raise ValueError(f"not an amount that a call can cost: {text[:40]!r}")
    return nano_usd


def _tokens(text: str | None) -> int | None:
    if not text:
        return None
    digits = text.replace(",", "").removesuffix(".0")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 13):
        raise ValueError(f"not a number of tokens: {text[:40]!r}")
    return int(digits)


def _moment(text: str | None) -> int | None:
    if not text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        try:
            return us_of(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            raise ValueError(_not_a_time(text)) from None
    if not _SECONDS_FROM <= number < 10**15:
        raise ValueError(_not_a_time(text))
    return int(number * (1_000 if number >= _MILLISECONDS_FROM else 1_000_000))


def _not_a_time(text: str) -> str:
    return (
        f"not a time: {text[:40]!r}; taken are a day (2026-11-29), ISO 8601 (2026-11-29T13:00:05Z; UTC if no zone is "
        "named), Unix seconds and milliseconds"
    )
