"""What happened to one request: measured once, and fed to totals, metrics, ledger and the latency model alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from node.backend import Kind
from node.money import Usage
from node.routing.values import Reason


class Ending(StrEnum):
    """How a request ended. `REFUSED`: a rule of the node's said no. `REJECTED`: it was the client's mistake."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    REJECTED = "rejected"
    CLIENT_CLOSED = "client_closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request from arrival to its last byte. Durations are seconds, None where there was no such moment.

    `backend` is ``local``, a provider's name, ``cache`` or None when nothing served it. `ttft_s` runs from arrival
    to the first content chunk and is None for answers that are not streamed. `predicted_ttft_s` is what the local
    engine was predicted to take from the decision on; `ttft_excess_s` is how much later than that the first content
    came, and `queue_excess_s` the same from when a request that waited was last told to. `may_leave` is false for a
    pinned request. `reference_nano_usd` is what
    the same tokens cost at list price, None where no list price is known.
    """

    request_id: str
    kind: Kind
    model: str
    tenant: str
    ending: Ending
    backend: str | None
    served_model: str | None
    reason: Reason | None
    attempts: int
    queue_s: float
    ttft_s: float | None
    predicted_ttft_s: float | None
    ttft_budget_s: float
    total_s: float
    prompt_bytes: int
    usage: Usage | None
    cost_nano_usd: int
    reference_nano_usd: int | None
    error_code: str | None
    choices: int = 1
    ttft_excess_s: float | None = None
    queue_excess_s: float | None = None
    may_leave: bool = True
