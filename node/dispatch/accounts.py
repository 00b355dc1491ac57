"""What an attempt is worth, before it begins and after it has ended; and where that is written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from node.backend import Call
from node.catalogue import Model
from node.dispatch.outcome import Ending, Outcome
from node.money import Budget, Usage
from node.routing.values import Features, Reason, Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An attempt that is about to begin: who, where to, by what rule, at what worst-case price.

    `parent_id` is the attempt that it retries or hedges.
    """

    id: str
    request_id: str
    parent_id: str | None
    caller: str
    backend: str
    model: str
    served_model: str
    kind: str
    rule: Reason
    residency: Residency
    may_leave: bool
    prompt_bytes: int
    max_output_tokens: int
    ttft_budget_s: float
    reserved_nano_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How an attempt ended, and what it cost. `usage` is None where nothing came of it.

    `list_nano_usd` and `cloud_nano_usd`: the same tokens at the model's list price and at that of its first cloud
    equivalent; None where there is none, and for work that nobody was given. Times in seconds, as in `Outcome`.
    """

    charged_nano_usd: int
    ending: Ending
    error_code: str | None = None
    usage: Usage | None = None
    list_nano_usd: int | None = None
    cloud_nano_usd: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    total_s: float | None = None


class Ledger(Protocol):
    """Where attempts are written down. What may cost money is admitted before it begins, the rest noted at its end."""

    @property
    def available(self) -> bool:
        """Whether it can be written to, as far as is known: nothing that costs leaves while it cannot."""

    async def admit(self, entry: Entry, budget: Budget) -> None:
        """Return once `entry` is written down at its worst case, durably; it is as good as sent from then on.

        Raises `BudgetSpent` and `LedgerUnavailable`; then, and when it is cancelled, the attempt counts for nothing.
        """

    def settle(self, entry_id: str, settlement: Settlement) -> None:
        """An admitted attempt has ended, and cost something. Returns at once; it is written down before long."""

    def release(self, entry_id: str, settlement: Settlement) -> None:
        """An admitted attempt came to nothing: it was not sent, or refused by the provider."""

    def note(self, entry: Entry, settlement: Settlement) -> None:
        """An attempt that costs nothing has ended: in the engine, from the cache, at a free server on the premises."""


def entry_for(
    call: Call,
    features: Features,
    *,
    number: int,
    backend: str,
    served_model: str,
    rule: Reason,
    reserved_nano_usd: int = 0,
) -> Entry:
    """The entry of a request's attempt of that number, counted from 1."""
    return Entry(
        id=f"{call.request_id}.{number}",
        request_id=call.request_id,
        parent_id=None if number == 1 else f"{call.request_id}.{number - 1}",
        caller=call.tenant,
        backend=backend,
        model=call.model,
        served_model=served_model,
        kind=call.kind.value,
        rule=rule,
        residency=features.residency,
        may_leave=features.may_leave,
        prompt_bytes=features.prompt_bytes,
        max_output_tokens=features.max_output_tokens * features.choices,
        ttft_budget_s=features.ttft_budget_s,
        reserved_nano_usd=reserved_nano_usd,
    )


def for_nothing(call: Call, features: Features, outcome: Outcome) -> tuple[Entry, Settlement]:
    """What is noted of a request that the cache answered, or that read along with another one."""
    entry = entry_for(
        call,
        features,
        number=1,
        backend=outcome.backend or "",
        served_model=outcome.served_model or "",
        rule=Reason.CACHE_HIT,
    )
    return entry, Settlement(
        charged_nano_usd=0,
        ending=outcome.ending,
        error_code=outcome.error_code,
        usage=outcome.usage,
        list_nano_usd=outcome.reference_nano_usd,
        cloud_nano_usd=outcome.cloud_nano_usd,
        queue_s=outcome.queue_s,
        ttft_s=outcome.ttft_s,
        total_s=outcome.total_s,
    )


def worth(model: Model, usage: Usage) -> tuple[int | None, int | None]:
    """What `usage` would have cost: at the model's list price, and at its first cloud equivalent's."""
    price = next((each.price for each in model.cloud if each.price is not None), None)
    return (
        model.reference.cost_nano_usd(usage) if model.reference is not None else None,
        price.cost_nano_usd(usage) if price is not None else None,
    )
