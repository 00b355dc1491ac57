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
class Foreseen:
    """A first token that was predicted, and when it came, both from the moment of the prediction.

    `queued`: that was made for a request that went on to wait in the node's queue.
    """

    predicted_s: float
    took_s: float
    queued: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request from arrival to its last byte. Durations are seconds, None where there was no such moment.

    `backend` is ``local``, a provider's name, ``cache`` or None when nothing served it. `ttft_s` runs from arrival
    to the first content chunk and is None for answers that are not streamed. `predicted_ttft_s` is what the local
    engine was predicted to take from the decision on; `foreseen` compares that, and what was predicted while the
    request waited, with what came. `may_leave` is false for a pinned request, and `pinned_by` says who pinned it
    (`Features`); `was_kept` says that it had stayed here past its last safe moment. `reference_nano_usd` is what the
    same tokens cost at list price, `cloud_nano_usd` at the model's first cloud equivalent; None where no such price
    is known. `most_tokens` is what the request was thought to
    come to at most.
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
    foreseen: tuple[Foreseen, ...] = ()
    may_leave: bool = True
    was_kept: bool = False
    most_tokens: int = 0
    pinned_by: str | None = None
    cloud_nano_usd: int | None = None
