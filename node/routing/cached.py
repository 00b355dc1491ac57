"""How much of a caller's prompts the engine has had before: learned from what its prefix cache spared."""

from __future__ import annotations

_SHARE_OF_NEW = 0.1
_ENOUGH = 4  # prompts of a caller, before anything is expected of the next


class CachedShares:
    """Fading means, by caller, of the share of prompt tokens that came from the prefix cache."""

    def __init__(self) -> None:
        self._by_caller: dict[str, tuple[float, int]] = {}

    def learn(self, caller: str, prompt_tokens: int, cached_tokens: int) -> None:
        """Take in one prompt that the engine has begun to answer."""
        if prompt_tokens <= 0:
            return
        share, count = self._by_caller.get(caller, (0.0, 0))
        new = min(1.0, max(0.0, cached_tokens / prompt_tokens))
        weight = max(_SHARE_OF_NEW, 1.0 / (count + 1))
        self._by_caller[caller] = (share + weight * (new - share), count + 1)

    def estimate(self, caller: str, prompt_tokens: int) -> int:
        """Tokens of the caller's next prompt that are expected to be in the cache."""
        share, count = self._by_caller.get(caller, (0.0, 0))
        return int(share * prompt_tokens) if count >= _ENOUGH else 0
