"""How long answers are, learned by caller: what an answer is expected to be before its first token."""

from __future__ import annotations

_START_TOKENS = 256.0
_SHARE_OF_NEW = 0.03
_ENOUGH = 20  # answers of one caller, before they count for more than everybody's


class OutputLengths:
    """Fading means of output tokens, over all callers and for each.

    The mean, not a quantile, is what a sum of many answers comes to: work, money and cache space are sums.
    """

    def __init__(self) -> None:
        self._overall = _Mean()
        self._by_caller: dict[str, _Mean] = {}

    def learn(self, caller: str, output_tokens: int) -> None:
        """Take in one finished answer."""
        self._overall.add(output_tokens)
        self._by_caller.setdefault(caller, _Mean()).add(output_tokens)

    def expected(self, caller: str) -> float:
        """Tokens the caller's next answer is expected to have."""
        overall = self._overall.value if self._overall.count else _START_TOKENS
        own = self._by_caller.get(caller)
        if own is None:
            return overall
        trust = min(1.0, own.count / _ENOUGH)
        return trust * own.value + (1.0 - trust) * overall


class _Mean:
    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += max(1.0 / self.count, _SHARE_OF_NEW) * (value - self.value)
