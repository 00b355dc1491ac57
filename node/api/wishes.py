"""What a client asks of Spillway itself, in the body under `spillway` or as `x-spillway-*` headers.

Both may be given: pins are OR-ed, of two budgets the smaller counts, and one `cache: false` is enough, so neither place
can loosen the other.
Unknown names are refused, not ignored: a misspelt `require_local` must not send a private prompt to the cloud. Nor must
one in the wrong place: at the top of the body, in what an SDK would have unpacked, or in a header without its prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from node.api.body import Headers
from node.api.schema_convert import convert
from node.errors import InvalidRequest
from node.money import usd_to_nano

_PREFIX = b"x-spillway-"
# Where a wish lands when a client writes out an option of its SDK.
_NOT_UNPACKED = ("extra_body", "extra_headers")
_OURS = ("spillway", "xspillway", "x-spillway", "x_spillway")
_SEPARATORS = dict.fromkeys(map(ord, "-_. "))
_MAX_BUDGET_MS = 86_400_000.0
_MAX_BUDGET_USD = 1_000_000.0
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

BudgetMs = Annotated[float, Meta(gt=0, le=_MAX_BUDGET_MS)]
BudgetUsd = Annotated[float, Meta(ge=0, le=_MAX_BUDGET_USD)]


class SpillwayFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `spillway` object of a request body. Times in milliseconds, money in US dollars.

    `cache` true allows an answer from the cache (and keeps one) though the request is not deterministic, false forbids
    both.
    """

    require_local: bool | None = None
    prefer_local: bool | None = None
    cache: bool | None = None
    latency_budget_ms: BudgetMs | None = None
    ttft_budget_ms: BudgetMs | None = None
    cost_budget_usd: BudgetUsd | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingWishes:
    """The client's wishes in the node's own units; None means that it did not say."""

    require_local: bool = False
    prefer_local: bool = False
    cache: bool | None = None
    latency_budget_s: float | None = None
    ttft_budget_s: float | None = None
    cost_budget_nano_usd: int | None = None


_NO_WISHES = RoutingWishes()


def parse_wishes(document: Mapping[str, Any], headers: Headers = ()) -> RoutingWishes:
    """The wishes in `document["spillway"]` and in `headers` (lower-case names), joined.

    Raises `InvalidRequest` for an unknown name, a bad value or a pin in another place; `param` is ``spillway.<name>``,
    the header's name, or where the pin is.
    """
    _refuse_misplaced(document)
    in_body = document.get("spillway")
    given = []
    for header in headers:
        if header[0].startswith(_PREFIX):
            given.append(header)
        else:
            _refuse_misspelt(header[0].decode("latin-1"))
    if in_body is None and not given:
        return _NO_WISHES
    fields = convert(in_body, SpillwayFields, "spillway") if in_body is not None else SpillwayFields()
    values: dict[str, list[Any]] = {
        name: [] if (value := getattr(fields, name)) is None else [value] for name in _READERS
    }
    for raw_name, raw_value in given:
        name = raw_name[len(_PREFIX) :].decode("latin-1").replace("-", "_")
        param = raw_name.decode("latin-1")
        reader = _READERS.get(name)
        if reader is None:
            known = ", ".join(f"x-spillway-{known.replace('_', '-')}" for known in _READERS)
            raise InvalidRequest(f"Unknown header '{param[:64]}'. Spillway knows {known}.", param=param[:64])
        values[name].append(reader(raw_value.decode("latin-1").strip(), param))
    return RoutingWishes(
        require_local=any(values["require_local"]),
        prefer_local=any(values["prefer_local"]),
        cache=all(values["cache"]) if values["cache"] else None,
        latency_budget_s=_seconds(values["latency_budget_ms"]),
        ttft_budget_s=_seconds(values["ttft_budget_ms"]),
        cost_budget_nano_usd=_nano_usd(values["cost_budget_usd"]),
    )


def _refuse_misplaced(document: Mapping[str, Any]) -> None:
    places = [name for name in document if name != "spillway" and _means_us(name)]
    for outer in _NOT_UNPACKED:
        if isinstance(inner := document.get(outer), dict):
            places += [f"{outer}.{name}" for name in inner if _means_us(name)]
    if isinstance(labels := document.get("metadata"), dict):  # the client's own names, so only the pin is one of ours
        places += [f"metadata.{name}" for name in labels if _is_pin(name)]
    if places:
        param = places[0][:64]
        raise InvalidRequest(
            f"'{param}' is not read there. What is asked of Spillway goes into the object 'spillway' at the top of "
            'the body, as in {"spillway": {"require_local": true}}, or into headers, as in '
            "x-spillway-require-local: true.",
            param=param,
        )


def _refuse_misspelt(header: str) -> None:
    if _means_us(header):
        raise InvalidRequest(
            f"Unknown header '{header[:64]}'. What is asked of Spillway is in headers that begin with x-spillway-, "
            "as in x-spillway-require-local: true.",
            param=header[:64],
        )


def _means_us(name: str) -> bool:
    """Whether a name is meant for us, however it is spelled."""
    lower = name.lower()
    return lower.startswith(_OURS) or _is_pin(lower)


def _is_pin(name: str) -> bool:
    lower = name.lower()
    return "local" in lower and lower.translate(_SEPARATORS).endswith("requirelocal")


def _boolean(text: str, param: str) -> bool:
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise InvalidRequest(f"Invalid value for '{param}': expected true or false.", param=param)
    return value


def _milliseconds(text: str, param: str) -> float:
    if not _DECIMAL.fullmatch(text) or not 0 < float(text) <= _MAX_BUDGET_MS:
        raise InvalidRequest(f"Invalid value for '{param}': expected milliseconds, more than 0.", param=param)
    return float(text)


def _dollars(text: str, param: str) -> float:
    if not _DECIMAL.fullmatch(text) or float(text) > _MAX_BUDGET_USD:
        raise InvalidRequest(f"Invalid value for '{param}': expected US dollars, 0 or more.", param=param)
    return float(text)


_READERS: dict[str, Callable[[str, str], bool | float]] = {
    "require_local": _boolean,
    "prefer_local": _boolean,
    "cache": _boolean,
    "latency_budget_ms": _milliseconds,
    "ttft_budget_ms": _milliseconds,
    "cost_budget_usd": _dollars,
}


def _seconds(milliseconds: list[float]) -> float | None:
    return min(milliseconds) / 1000 if milliseconds else None


def _nano_usd(dollars: list[float]) -> int | None:
    # repr() gives the shortest decimal that is this float: the one the client wrote.
    return usd_to_nano(Decimal(repr(min(dollars)))) if dollars else None
