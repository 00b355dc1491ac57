"""How many tokens a prompt of so many bytes will be, learned from the usage that backends report."""

from __future__ import annotations

_START_BYTES_PER_TOKEN = 4.0
_SHARE_OF_NEW = 0.05
_MIN_PROMPT_BYTES = 16  # below that the chat template outweighs the text


class TokenRatio:
    """Bytes per prompt token of one model, as an exponentially weighted mean."""

    def __init__(self) -> None:
        self._bytes_per_token = _START_BYTES_PER_TOKEN

    def learn(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """Take in one counted prompt."""
        if prompt_bytes >= _MIN_PROMPT_BYTES and prompt_tokens > 0:
            self._bytes_per_token += _SHARE_OF_NEW * (prompt_bytes / prompt_tokens - self._bytes_per_token)

    def estimate(self, prompt_bytes: int) -> int:
        """Expected prompt tokens, at least one."""
        return max(1, round(prompt_bytes / self._bytes_per_token))
