"""The live feed: one typed document per second, the same for every viewer (`docs/dashboard.md`).

It is a stream of server-sent events. `hello` comes first and brings what a viewer needs to begin: the last minutes and
how all stands. A `tick` follows every second; a viewer that reads too slowly misses some, and nothing in one builds on
another. `bye` says that the node ends. Nothing here holds a word of a prompt or an answer.

Money is in integer nano-dollars, moments are Unix seconds, durations seconds, shares 0 to 1. None (`null`, or left out)
means not known, or that there is no such thing; it never means 0.
"""

from __future__ import annotations

from typing import Final

import msgspec

FEED_VERSION: Final = 1
"""Raised when a field changes its meaning or goes away; new fields do not raise it."""

HISTORY_S: Final = 300.0
"""How far back `hello` goes."""
MOST_FOUND: Final = 100
"""How many decisions a search answers with at most."""
MOST_TEXT: Final = 100
"""How many characters may be looked for."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every part of the feed."""


class ModelPoint(_Part, frozen=True, kw_only=True):
    """One model at one moment. `running` and `kv_cache_usage` are its engine's."""

    queued: int = 0
    running: int | None = None
    kv_cache_usage: float | None = None


class Point(_Part, frozen=True, kw_only=True):
    """One second for the charts.

    Requests count in the second in which they end, by who answered: this node's engine, a provider on the premises, one
    in the cloud, the answer cache, nobody (refused, failed, or left). `predicted_ttft_s` and `measured_ttft_s` are the
    medians over the engine's answers of that second of what was predicted when they were placed and what then came;
    `ttft_p50_s` and `ttft_p95_s` those of all streamed answers, counted from arrival. `promises_kept` of `promises`
    streamed answers began within their budget. `reasons` counts the requests by who answered (``local``, ``premises``,
    ``cloud``, ``cache``, ``nobody``) and why.
    """

    at_s: float
    local_per_s: float = 0.0
    premises_per_s: float = 0.0
    cloud_per_s: float = 0.0
    cache_per_s: float = 0.0
    unserved_per_s: float = 0.0
    tokens_per_s: float = 0.0
    predicted_ttft_s: float | None = None
    measured_ttft_s: float | None = None
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    promises: int = 0
    promises_kept: int = 0
    reasons: dict[str, dict[str, int]] = {}
    models: dict[str, ModelPoint] = {}


class Totals(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """Since the node started. `cloud_nano_usd` is what the same tokens cost at each model's first cloud equivalent,
    and what was saved is that less what was spent; `reference_nano_usd` is what they cost at list price."""

    requests: int
    local: int
    premises: int
    cloud: int
    cache: int
    unserved: int
    prompt_tokens: int
    completion_tokens: int
    spent_nano_usd: int
    reference_nano_usd: int
    cloud_nano_usd: int
    promises: int
    promises_kept: int


class BudgetWindow(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """One window (``hour``, ``day``, ``month``, UTC) of the node's own budget. What is reserved counts as spent."""

    window: str
    limit_nano_usd: int
    spent_nano_usd: int
    ends_in_s: float


class Change(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """An engine or a provider came into `state` at `at_s`; `why` where it failed."""

    at_s: float
    state: str
    why: str | None = None


class EngineNow(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """One engine. `running` and `waiting` are its scheduler's as of its last step; `in_flight` is the node's count.

    `changes` are the last changes of its state, oldest first.
    """

    state: str
    since_s: float
    starts: int
    deaths: int
    hangs: int
    given_up: bool = False
    why: str | None = None
    rebuild_in_s: float | None = None
    running: int = 0
    waiting: int = 0
    in_flight: int = 0
    max_sequences: int = 0
    kv_cache_usage: float | None = None
    tpot_s: float | None = None
    changes: tuple[Change, ...] = ()


class ModelNow(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """One served model: its queue in the node, and its engine where it has one here."""

    name: str
    queued: int
    engine: EngineNow | None = None


class ProviderNow(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """One provider. The percentiles fade over minutes and are None before the first answer.

    `counted_on_s` is what routing counts on for its first token: a high percentile, or the settings' assumption.
    `emulated`: the settings say that it is an emulator on this machine, whose answers and bill are made up.
    `not_closed_for_s` is how long its breaker has not been closed, None while it is; `tried_in_s` until a call may go
    there again as far as is known, 0 if now, None if not before somebody mends it. `changes` are the last moments at
    which it was left alone or used again, oldest first.
    """

    name: str
    zone: str
    available: bool
    breaker: str
    opened_by: str | None
    isolated_by: str | None
    paused_s: float
    in_flight: int
    weight: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    counted_on_s: float
    requests: int
    prompt_tokens: int
    completion_tokens: int
    spent_nano_usd: int
    emulated: bool = False
    not_closed_for_s: float | None = None
    tried_in_s: float | None = None
    changes: tuple[Change, ...] = ()


class GpuNow(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """One GPU as NVML tells of it; `problem` says why it does not."""

    index: int
    name: str | None = None
    vram_total_bytes: int | None = None
    vram_used_bytes: int | None = None
    utilisation: float | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    problem: str | None = None


class Now(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """How all stands. `budget` is () where none is set and None where it cannot be read; so it is with `gpus`."""

    uptime_s: float
    ready: bool
    draining: bool
    inside: int
    totals: Totals
    models: tuple[ModelNow, ...]
    providers: tuple[ProviderNow, ...]
    budget: tuple[BudgetWindow, ...] | None
    gpus: tuple[GpuNow, ...] | None
    no_gpu_because: str | None = None
    ledger_down_because: str | None = None
    strain: str = "calm"


class DecisionRow(_Part, frozen=True, kw_only=True, gc=False):
    """One request that has ended: where it went, why, and what came of it. The fields are `Outcome`'s."""

    at_s: float
    request_id: str
    model: str
    tenant: str
    ending: str
    backend: str | None = None
    served_model: str | None = None
    reason: str | None = None
    pinned_by: str | None = None
    error_code: str | None = None
    attempts: int = 1
    queue_s: float = 0.0
    predicted_ttft_s: float | None = None
    ttft_s: float | None = None
    ttft_budget_s: float = 0.0
    total_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_nano_usd: int = 0
    reference_nano_usd: int | None = None


class Decisions(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """The answer to a search among the last requests, newest first. `searched` is how many were looked through."""

    searched: int
    decisions: tuple[DecisionRow, ...]


class Hello(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """The first event. `emulated`: no provider in the cloud is a real one. `may_change` says whether the admin API is
    on this very port; `decisions` are newest first."""

    feed: int
    node: str
    interval_s: float
    started_s: float
    emulated: bool
    may_change: bool
    history: tuple[Point, ...]
    now: Now
    decisions: tuple[DecisionRow, ...]


class Tick(_Part, frozen=True, kw_only=True, omit_defaults=False):
    """One second later. Of the `decisions` of this second `skipped` were left out; of every kind, some are in."""

    number: int
    point: Point
    now: Now
    decisions: tuple[DecisionRow, ...]
    skipped: int


def event(name: str, document: Hello | Tick | dict[str, str]) -> bytes:
    """One server-sent event."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(document) + b"\n\n"
