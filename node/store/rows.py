"""Entries and settlements as rows of `calls`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, update

from node.dispatch.accounts import Entry, Settlement
from node.store.audit import AuditRow
from node.store.driver import Statement
from node.store.schema import IS_OUT, AuditEvent, State, calls
from node.store.windows import hour_of

Row = dict[str, Any]

_OUT = (
    "id", "request_id", "parent_id", "node", "caller", "backend", "model", "served_model", "kind", "state", "rule",
    "at_us", "hour", "reserved_nano_usd", "charged_nano_usd", "estimated", "usage_suspect", "may_leave", "prompt_bytes",
    "max_output_tokens", "ttft_budget_us",
)  # fmt: skip
_END = (
    "state", "ended_us", "charged_nano_usd", "list_nano_usd", "cloud_nano_usd", "prompt_tokens", "completion_tokens",
    "cached_tokens", "estimated", "usage_suspect", "ending", "error_code", "queue_us", "ttft_us", "total_us",
)  # fmt: skip

INSERT_OUT = Statement(calls.insert(), _OUT)
INSERT_OVER = Statement(calls.insert(), list(dict.fromkeys(_OUT + _END)))
# Only what is still out: a second end, whatever sent it, changes nothing.
END = Statement(
    update(calls)
    .where(calls.c.id == bindparam("the_id"), IS_OUT)
    .values({name: bindparam(f"new_{name}") for name in _END}),
    ["the_id", *(f"new_{name}" for name in _END)],
)


def dispatched_row(entry: Entry, node: str, at_us: int) -> Row:
    """The row of an attempt that goes out now."""
    return {
        "id": entry.id,
        "request_id": entry.request_id,
        "parent_id": entry.parent_id,
        "node": node,
        "caller": entry.caller,
        "backend": entry.backend,
        "model": entry.model,
        "served_model": entry.served_model,
        "kind": entry.kind,
        "state": State.DISPATCHED.value,
        "rule": entry.rule.value,
        "at_us": at_us,
        "hour": hour_of(at_us),
        "reserved_nano_usd": entry.reserved_nano_usd,
        "charged_nano_usd": entry.reserved_nano_usd,
        "estimated": False,
        "usage_suspect": False,
        "may_leave": entry.may_leave,
        "prompt_bytes": entry.prompt_bytes,
        "max_output_tokens": entry.max_output_tokens,
        "ttft_budget_us": _us(entry.ttft_budget_s),
    }


def ended_row(entry: Entry, settlement: Settlement, node: str, ended_us: int) -> Row:
    """The row of an attempt that costs nothing, written when it is over."""
    began_us = ended_us - _us((settlement.total_s or 0.0) - (settlement.queue_s or 0.0))
    return dispatched_row(entry, node, began_us) | _ended(settlement, State.SETTLED, ended_us)


def end_values(entry_id: str, settlement: Settlement, state: State, ended_us: int) -> Row:
    """What `END` needs to end the attempt of that id."""
    return {"the_id": entry_id} | {f"new_{key}": value for key, value in _ended(settlement, state, ended_us).items()}


def audit_row(entry: Entry, event: AuditEvent, rule: str, node: str, at_us: int) -> AuditRow:
    """What the audit keeps of an attempt that was let out, or was to leave and may not."""
    return AuditRow(
        at_us=at_us,
        node=node,
        event=event,
        request_id=entry.request_id,
        caller=entry.caller,
        residency=entry.residency.value,
        rule=rule,
        provider=entry.backend,
        model=entry.served_model,
        prompt_bytes=entry.prompt_bytes,
        reserved_nano_usd=entry.reserved_nano_usd,
    )


def _ended(settlement: Settlement, state: State, ended_us: int) -> Row:
    usage = settlement.usage
    return {
        "state": state.value,
        "ended_us": ended_us,
        "charged_nano_usd": 0 if state is State.RELEASED else settlement.charged_nano_usd,
        "list_nano_usd": settlement.list_nano_usd,
        "cloud_nano_usd": settlement.cloud_nano_usd,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "estimated": usage.estimated if usage else False,
        "usage_suspect": usage.suspect if usage else False,
        "ending": settlement.ending.value,
        "error_code": settlement.error_code,
        "queue_us": _us_or_none(settlement.queue_s),
        "ttft_us": _us_or_none(settlement.ttft_s),
        "total_us": _us_or_none(settlement.total_s),
    }


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _us_or_none(seconds: float | None) -> int | None:
    return None if seconds is None else _us(seconds)
