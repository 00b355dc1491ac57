"""What the engine has been handed and has not given back, and how much more of its KV cache that will take."""

from __future__ import annotations

from node.routing.values import Features


class InFlight:
    """Requests in the engine, by id. All figures count every choice of a request as a sequence of its own."""

    def __init__(self) -> None:
        self.sequences = 0
        self.entering_tokens = 0
        self.pinned_sequences = 0
        self.pinned_kv_tokens = 0.0
        self._entering: dict[str, int] = {}
        self._since_s: dict[str, float] = {}
        self._output_tokens = 0.0
        self._sum_since_s = 0.0

    def enter(self, features: Features, now_s: float) -> None:
        """The engine has been handed the request. Until `entered` it does not count the prompt itself."""
        tokens = features.uncached_tokens_estimate * features.choices
        self._entering[features.request_id] = tokens
        self.entering_tokens += tokens
        self._since_s[features.request_id] = now_s
        self._count(features, 1, now_s)

    def entered(self, request_id: str) -> None:
        """The engine counts the request's prompt itself from now on."""
        self.entering_tokens -= self._entering.pop(request_id, 0)

    def leave(self, features: Features) -> None:
        """The engine has given the request's slots back."""
        self.entered(features.request_id)
        self._count(features, -1, self._since_s.pop(features.request_id))
        if not self.sequences:
            self._output_tokens = self._sum_since_s = self.pinned_kv_tokens = 0.0  # what rounding has left

    def growth_tokens(self, tpot_s: float | None, now_s: float) -> float:
        """How much more the KV cache is going to hold than now, if nothing else comes; 0 while that is not known.

        Sequences that have run for unequal times hold half of their answers on average, and what ends makes room for
        what grows. After a rush they are all young: they hold less, and will hold that half later.
        """
        if tpot_s is None or not self.sequences:
            return 0.0
        generated = (self.sequences * now_s - self._sum_since_s) / tpot_s
        growth = 0.5 * self._output_tokens - generated
        return growth if growth > 0.0 else 0.0

    def _count(self, features: Features, sign: int, since_s: float) -> None:
        sequences = sign * features.choices
        self.sequences += sequences
        self._output_tokens += sequences * features.output_tokens_estimate
        self._sum_since_s += sequences * since_s
        if not features.may_leave:
            self.pinned_sequences += sequences
            self.pinned_kv_tokens += sequences * held_tokens(features)


def held_tokens(features: Features) -> float:
    """What one sequence of the request holds in the KV cache, on average over its time there."""
    return features.prompt_tokens_estimate + 0.5 * features.output_tokens_estimate
