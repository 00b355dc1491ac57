"""What vLLM's own metrics would say, as far as it costs nothing: from the step reports, and from what calls have had.

vLLM's logger is not used (`node.local.building._stat_logger`): it wants a histogram update per token, and
bookkeeping that is a seventh of this process's CPU. This is a few additions per step and per call. No vLLM here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from node.local.outputs import Tally


@dataclass(slots=True)
class EngineCounts:
    """One engine's, since it was built. `waiting` for capacity, and `deferred` (a LoRA slot, a KV transfer), as of the
    last step; prefix-cache tokens asked for and found; and by why they ended, sequences that did.
    """

    running: int = 0
    waiting: int = 0
    deferred: int = 0
    kv_cache_usage: float = 0.0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    _prompt_tokens: int = 0
    _output_tokens: int = 0
    _under_way: dict[int, Tally] = field(default_factory=dict)

    def stepped(
        self, *, running: int, waiting: int, deferred: int, kv_cache_usage: float, queries: int, hits: int
    ) -> None:
        """Take in one step's report."""
        self.running, self.waiting, self.deferred, self.kv_cache_usage = running, waiting, deferred, kv_cache_usage
        self.prefix_cache_queries += queries
        self.prefix_cache_hits += hits

    def ended(self, reason: str) -> None:
        """A sequence has come to its end."""
        self.finished[reason] = self.finished.get(reason, 0) + 1

    @contextmanager
    def counting(self, tally: Tally) -> Iterator[None]:
        """A call whose tokens are counted in `tally`, for the length of the block."""
        self._under_way[id(tally)] = tally
        try:
            yield
        finally:
            del self._under_way[id(tally)]
            self._prompt_tokens += tally.prompt_tokens
            self._output_tokens += tally.output_tokens

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts that have had a first token, those found in the prefix cache included."""
        return self._prompt_tokens + sum(tally.prompt_tokens for tally in self._under_way.values())

    @property
    def output_tokens(self) -> int:
        """Generated so far, calls under way included."""
        return self._output_tokens + sum(tally.output_tokens for tally in self._under_way.values())
