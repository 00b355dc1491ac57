"""Prompt tokens that the engine has been handed and has not computed yet, exact as of its last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PrefillQueue:
    """What `AsyncLLM.get_num_queued_tokens()` counts, less what has been computed of it.

    Its cost does not grow with the number of running requests, and what it is asked for is ready.

    vLLM counts the whole prompt of a request until its first token. How far it has come with prompts that take several
    steps is the difference between all prompt tokens its steps have reported and those of the requests that have begun
    (without those it found in its prefix cache). `states` is vLLM's own table of live requests.
    """

    def __init__(self, states: Mapping[str, Any]) -> None:
        self._states = states
        self._prefilling: list[Any] = []
        self._whole_tokens = 0
        self._computed_tokens = 0

    @property
    def tokens(self) -> int:
        """Prompt tokens still to be computed."""
        return max(0, self._whole_tokens - self._computed_tokens)

    def handed_over(self, request_id: str, sequences: int) -> None:
        """A request has entered the engine. Several sequences of one are requests of their own there."""
        ids = (request_id,) if sequences == 1 else (f"{index}_{request_id}" for index in range(sequences))
        for each in ids:
            state = self._states.get(each)
            if state is not None and state.is_prefilling:
                self._prefilling.append(state)
                self._whole_tokens += state.prompt_len

    def pairs(self, prefill_tokens: int) -> float:
        """How much attention reads for the next so many prompt tokens: each with all before it in its prompt."""
        done, left, pairs = self._computed_tokens, prefill_tokens, 0.0
        for state in self._prefilling:
            if left <= 0:
                break
            if done >= state.prompt_len:
                done -= state.prompt_len
                continue
            tokens = min(left, state.prompt_len - done)
            pairs += tokens * (done + tokens / 2)
            left -= tokens
            done = 0
        return pairs

    def stepped(self, prefill_tokens: int) -> None:
        """A step has computed so many prompt tokens, and its first tokens have been delivered."""
        self._computed_tokens += prefill_tokens
        self.settle()

    def settle(self) -> None:
        """Let go of requests that have begun, or were aborted before they did."""
        if not self._prefilling:
            self._computed_tokens = 0  # what was computed twice, after a preemption, is no progress
            return
        still = []
        for state in self._prefilling:
            if state.is_prefilling and state.request_id in self._states:
                still.append(state)
                continue
            self._whole_tokens -= state.prompt_len
            # How much of an aborted prompt was computed is not told. Taking all of it off errs towards a longer queue,
            # and only until the next request begins.
            cached = 0 if state.is_prefilling else state.num_cached_tokens or 0
            self._computed_tokens = max(0, self._computed_tokens - state.prompt_len + cached)
        self._prefilling = still
