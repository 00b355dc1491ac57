"""Who is calling, and what its key may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from node.money import NO_BUDGET, Budget, usd_to_nano
from node.routing.values import Residency
from node.settings import BudgetSettings, KeySettings

ANONYMOUS: Final = "anonymous"


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant and its rights; the keys of one name are one tenant.

    `models` are the catalogue names it may use (None: all). Limits per minute are None where there is none. Among those
    who wait, a higher `priority` goes first. `ttft_budget_s` is the promise to requests that name none (None: the
    settings'). `cache_salt` keeps what the engine remembers of its prompts from other tenants (None: there are none).
    """

    tenant: str
    residency: Residency = Residency.ANY
    models: frozenset[str] | None = None
    budget: Budget = NO_BUDGET
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    priority: int = 0
    ttft_budget_s: float | None = None
    cache_salt: str | None = field(default=None, repr=False)

    @property
    def is_limited(self) -> bool:
        """Whether anything is counted per minute."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def may_use(self, model: str) -> bool:
        """Whether its key is good for that model."""
        return self.models is None or model in self.models


def caller_of(key: KeySettings) -> Caller:
    """The caller that the settings describe."""
    return Caller(
        tenant=key.name,
        residency=key.residency,
        models=None if key.models is None else frozenset(key.models),
        budget=budget_of(key.budget),
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        priority=key.priority,
        ttft_budget_s=None if key.ttft_budget_ms is None else key.ttft_budget_ms / 1000,
    )


def budget_of(settings: BudgetSettings) -> Budget:
    """The budget that the settings give in dollars."""
    return Budget(
        hour_nano_usd=_nano(settings.hour_usd),
        day_nano_usd=_nano(settings.day_usd),
        month_nano_usd=_nano(settings.month_usd),
    )


def _nano(usd: float | None) -> int | None:
    # repr() gives the shortest decimal that is this float: the one that was written.
    return None if usd is None else usd_to_nano(Decimal(repr(usd)))
