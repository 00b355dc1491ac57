"""What an engine has in hand and what that teaches, kept from its step reports and from the calls that enter it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from node.local.counts import EngineCounts
from node.local.outputs import Tally
from node.local.prefill import PrefillQueue
from node.local.stats import Step, StepStats, TimedStep


class Work:
    """One engine's. `clock` gives monotonic seconds.

    Called on the event loop: `on_step` after each step, `on_entered` with the id of a call once the engine counts its
    prompts itself, `on_timed` with each step once it is known how long it took.

    `stats` is what its steps teach, `counts` what vLLM's own metrics would say, `prefill` the prompts it has not
    computed yet, `steps` how many steps with work in them it has made, `handed_over` how many sequences it is being
    given at the moment. `batch_tokens` is what a step can hold, 0 while that is not known.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        on_step: Callable[[], None] = lambda: None,
        on_entered: Callable[[str], None] = lambda request_id: None,
        on_timed: Callable[[TimedStep], None] = lambda step: None,
    ) -> None:
        self._clock = clock
        self.on_step = on_step
        self._on_entered = on_entered
        self._on_timed = on_timed
        self.stats = StepStats()
        self.counts = EngineCounts()
        self.prefill = PrefillQueue({})
        self.steps = 0
        self.handed_over = 0
        self.batch_tokens = 0
        self.stepping_tokens = 0
        self._stepping_since_s = 0.0
        self._finished = 0

    def begin(self, states: Mapping[str, Any]) -> None:
        """The engine is built, and `states` is vLLM's own table of live requests; what comes now is learned from."""
        self.stats = StepStats(self._on_timed)
        self.prefill = PrefillQueue(states)

    def stepping_s(self) -> float:
        """How long the step under way has lasted; `stepping_tokens` of prompts may be in it."""
        return self._clock() - self._stepping_since_s

    @contextmanager
    def entering(self, call_id: str, sequences: int) -> Iterator[Tally]:
        """Count a call's `sequences` as in flight from now until the engine's own count has them, or the block ends."""
        left = sequences
        self.handed_over += sequences

        def taken_over(count: int) -> None:
            nonlocal left
            taken = min(left, count)
            left -= taken
            self.handed_over -= taken

        def on_queued(count: int, request_id: str) -> None:
            taken_over(count)
            self.prefill.handed_over(request_id, count)
            if self.stats.running == 0:
                self._step_begins()
            if left == 0:
                self._on_entered(call_id)

        try:
            tally = Tally(on_queued, self._count_finished)
            with self.counts.counting(tally):
                yield tally
        finally:
            taken_over(left)
            self.prefill.settle()

    def report(self, scheduler: Any) -> None:
        """Take in vLLM's scheduler statistics of one step; None is no step."""
        if scheduler is None:
            return
        details = scheduler.iteration_details
        finished, self._finished = self._finished, 0
        self.steps += details is not None
        prefill_tokens = details.num_ctx_tokens if details else 0
        prefixes = scheduler.prefix_cache_stats
        self.counts.stepped(
            running=scheduler.num_running_reqs,
            waiting=scheduler.num_waiting_reqs,
            deferred=scheduler.num_skipped_waiting_reqs,
            kv_cache_usage=scheduler.kv_cache_usage,
            queries=prefixes.queries,
            hits=prefixes.hits,
        )
        self.stats.add(
            Step(
                at_s=self._clock(),
                running=scheduler.num_running_reqs,
                waiting=scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs,
                kv_cache_usage=scheduler.kv_cache_usage,
                computed=details is not None,
                decoding=details.num_generation_requests if details else 0,
                prefill_tokens=prefill_tokens,
                prefill_pairs=self.prefill.pairs(prefill_tokens),
                elapsed_s=details.elapsed_ms / 1000 if details else None,
                finished=finished,
            )
        )
        self.prefill.stepped(prefill_tokens)
        self._step_begins()
        self.on_step()

    def _count_finished(self, reason: str) -> None:
        self._finished += 1
        self.counts.ended(reason)

    def _step_begins(self) -> None:
        """As far as can be told from here: a step is under way from now on, with all of the prompts it can hold."""
        room = self.batch_tokens - self.stats.running
        self.stepping_tokens = max(0, min(self.prefill.tokens, room))
        self._stepping_since_s = self._clock()
