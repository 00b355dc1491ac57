"""What finished answers of one model taught: how large the next request is likely to be, before any of it has run."""

from __future__ import annotations

from node.dispatch.outcome import Ending, Outcome
from node.routing.cached import CachedShares
from node.routing.lengths import OutputLengths
from node.routing.policy import LOCAL
from node.routing.tokens import TokenRatio


class Experience:
    """One model's."""

    def __init__(self) -> None:
        self._ratio = TokenRatio()
        self._lengths = OutputLengths()
        self._cached = CachedShares()

    def learn(self, outcome: Outcome) -> None:
        """Take in one request that is over. What was cut, estimated, or answered from memory teaches nothing."""
        usage = outcome.usage
        if outcome.ending is not Ending.DONE or usage is None or usage.estimated or outcome.backend == "cache":
            return
        self._ratio.learn(outcome.prompt_bytes, usage.prompt_tokens)
        self._lengths.learn(outcome.tenant, round(usage.completion_tokens / outcome.choices))
        if outcome.backend == LOCAL:
            self._cached.learn(outcome.tenant, usage.prompt_tokens, usage.cached_tokens)

    def prompt_tokens(self, prompt_bytes: int) -> int:
        """Expected tokens of a prompt of so many bytes, at least one."""
        return self._ratio.estimate(prompt_bytes)

    def cached_tokens(self, tenant: str, prompt_tokens: int) -> int:
        """How many of them are expected in the engine's prefix cache."""
        return self._cached.estimate(tenant, prompt_tokens)

    def output_tokens(self, tenant: str, max_output_tokens: int) -> float:
        """What one choice is expected to generate."""
        return min(float(max_output_tokens), self._lengths.expected(tenant))
