"""Running totals since start: calls, tokens, spend and savings, by backend and model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from node.dispatch.outcome import Ending, Outcome
from node.money import nano_to_usd_text


@dataclass(slots=True)
class Line:
    """The sums of some of the requests."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spent_nano_usd: int = 0
    reference_nano_usd: int = 0
    cloud_nano_usd: int = 0

    def add(self, outcome: Outcome) -> None:
        """Take in one request."""
        self.requests += 1
        self.spent_nano_usd += outcome.cost_nano_usd
        self.reference_nano_usd += outcome.reference_nano_usd or 0
        self.cloud_nano_usd += outcome.cloud_nano_usd or 0
        if outcome.usage is not None:
            self.prompt_tokens += outcome.usage.prompt_tokens
            self.completion_tokens += outcome.usage.completion_tokens

    def document(self) -> dict[str, Any]:
        """As JSON-ready values; money in dollars with every digit."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "spent_usd": _usd(self.spent_nano_usd),
            "reference_usd": _usd(self.reference_nano_usd),
            "all_cloud_usd": _usd(self.cloud_nano_usd),
            "saved_usd": _usd(self.cloud_nano_usd - self.spent_nano_usd),
        }


def _usd(nano_usd: int) -> msgspec.Raw:
    return msgspec.Raw(nano_to_usd_text(nano_usd).encode())


@dataclass(slots=True)
class Totals:
    """Adds up Outcomes. `reference` is what the same tokens cost at the catalogue's list prices, `cloud` what they cost
    at each model's first cloud equivalent: what was saved is that less what was spent, as in `spillway usage`."""

    all: Line = field(default_factory=Line)
    by_backend: dict[str, Line] = field(default_factory=dict)
    by_model: dict[str, Line] = field(default_factory=dict)
    by_reason: dict[str, int] = field(default_factory=dict)
    by_ending: dict[str, int] = field(default_factory=dict)
    streamed: int = 0
    streamed_in_budget: int = 0

    def add(self, outcome: Outcome) -> None:
        """Take in one request."""
        self.all.add(outcome)
        self.by_model.setdefault(outcome.model, Line()).add(outcome)
        if outcome.backend is not None:
            self.by_backend.setdefault(outcome.backend, Line()).add(outcome)
        if outcome.reason is not None:
            self.by_reason[outcome.reason] = self.by_reason.get(outcome.reason, 0) + 1
        self.by_ending[outcome.ending] = self.by_ending.get(outcome.ending, 0) + 1
        if outcome.ttft_s is not None and outcome.ending is not Ending.REFUSED:
            self.streamed += 1
            self.streamed_in_budget += outcome.ttft_s <= outcome.ttft_budget_s

    def document(self) -> dict[str, Any]:
        """All of it as a JSON-ready document; money in dollars with every digit."""
        return {
            "total": self.all.document(),
            "by_backend": {name: line.document() for name, line in sorted(self.by_backend.items())},
            "by_model": {name: line.document() for name, line in sorted(self.by_model.items())},
            "by_reason": dict(sorted(self.by_reason.items())),
            "by_ending": dict(sorted(self.by_ending.items())),
            "ttft_in_budget": {"measured": self.streamed, "met": self.streamed_in_budget},
        }
