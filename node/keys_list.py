"""Every key and its rights, as ``spillway keys list`` and the admin API show them. No secret is known here."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import msgspec

from node.caller import Caller, caller_of
from node.money import nano_to_usd_text
from node.settings import KeySettings
from node.store.keys import StoredKey

_HEADINGS = ("NAME", "KEY", "STATE", "RESIDENCY", "MODELS", "BUDGET", "PER MINUTE", "PRIORITY", "TTFT")


def write_list(stored: Sequence[StoredKey], settings: Sequence[KeySettings], now_us: int, *, as_json: bool) -> None:
    """Print the keys of the database, then those of the settings."""
    lists = keys_document(stored, settings, now_us)
    documents = lists["ledger"] + lists["settings"]
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(documents), indent=2).decode())
        return
    if not documents:
        print("There is no key. Make one with: spillway keys create NAME")
        return
    rows = [_HEADINGS, *(_row(each) for each in documents)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def keys_document(
    stored: Sequence[StoredKey], settings: Sequence[KeySettings], now_us: int
) -> dict[str, list[dict[str, Any]]]:
    """Every key as a document, those of the database under ``ledger``, those of the settings under ``settings``."""
    return {
        "settings": [_document(caller_of(key), None, now_us) for key in settings],
        "ledger": [_document(each.caller, each, now_us) for each in stored],
    }


def _document(caller: Caller, key: StoredKey | None, now_us: int) -> dict[str, Any]:
    budget = caller.budget
    return {
        "name": caller.tenant,
        "id": key.id if key else None,
        "state": _state(key, now_us) if key else "settings",
        "residency": caller.residency.value,
        "models": None if caller.models is None else sorted(caller.models),
        "budget_usd": {
            "hour": _usd(budget.hour_nano_usd),
            "day": _usd(budget.day_nano_usd),
            "month": _usd(budget.month_nano_usd),
        },
        "requests_per_minute": caller.requests_per_minute,
        "tokens_per_minute": caller.tokens_per_minute,
        "priority": caller.priority,
        "ttft_budget_ms": None if caller.ttft_budget_s is None else round(caller.ttft_budget_s * 1000),
        "created": moment(key.created_us) if key else None,
        "expires": moment(key.expires_us) if key and key.expires_us else None,
    }


def _state(key: StoredKey, now_us: int) -> str:
    if key.is_good(now_us):
        return "good" if key.expires_us is None else "replaced"
    return "revoked" if key.revoked else "expired"


def _row(document: dict[str, Any]) -> tuple[str, ...]:
    expires = f" until {document['expires']}" if document["state"] == "replaced" else ""
    budget = [f"${bytes(usd).decode()}/{window}" for window, usd in document["budget_usd"].items() if usd is not None]
    limits = ((document["requests_per_minute"], "requests"), (document["tokens_per_minute"], "tokens"))
    ttft_ms = document["ttft_budget_ms"]
    return (
        document["name"],
        f"{document['id']}…" if document["id"] else "-",
        document["state"] + expires,
        document["residency"],
        "all" if document["models"] is None else ",".join(document["models"]),
        " ".join(budget) or "-",
        " ".join(f"{limit} {what}" for limit, what in limits if limit is not None) or "-",
        str(document["priority"]),
        f"{ttft_ms} ms" if ttft_ms is not None else "-",
    )


def _usd(nano_usd: int | None) -> msgspec.Raw | None:
    return None if nano_usd is None else msgspec.Raw(nano_to_usd_text(nano_usd).encode())


def moment(at_us: int) -> str:
    """A moment of the wall clock, to be read."""
    return datetime.datetime.fromtimestamp(at_us // 1_000_000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
