"""A simulated engine as the node sees one: what it reports of its steps, what that teaches, and the load it shows."""

from __future__ import annotations

from node.routing.observer import EngineObserver
from node.routing.profile import EngineProfile
from node.routing.values import EngineLoad, EngineState
from node.simulate.engine import Sequence, SimulatedEngine, StepReport


class ObservedEngine:
    """`simulated`, and what `observer` has learned of it."""

    def __init__(self, profile: EngineProfile) -> None:
        self.simulated = SimulatedEngine(profile)
        self.observer = EngineObserver()
        self._stepping_tokens = 0
        self._stepping_since_s = 0.0

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """Hand a sequence over."""
        idle = self.simulated.ends_s is None
        self.simulated.submit(sequence, now_s)
        if idle:
            self._step_begins(now_s)

    def step(self, now_s: float) -> StepReport:
        """End the steps under way, begin the next, and learn from the report."""
        report = self.simulated.step()
        self._step_begins(now_s)
        self.observer.step(
            decoding=report.decoding,
            prefill_tokens=report.prefill_tokens,
            seconds=report.seconds,
            count=report.count,
        )
        self.observer.passed(
            decoding=report.decoding, finished=len(report.finished), seconds=report.seconds, count=report.count
        )
        return report

    def load(self, in_flight: int, now_s: float) -> EngineLoad:
        """What the node knows of the engine, with `in_flight` sequences handed over and not given back."""
        engine, profile, observer = self.simulated, self.simulated.profile, self.observer
        running = engine.running
        return EngineLoad(
            state=EngineState.READY,
            capabilities=frozenset(),
            context_tokens=profile.context_tokens,
            max_sequences=profile.max_sequences,
            in_flight=in_flight,
            running=running,
            waiting=engine.waiting,
            kv_cache_usage=(engine.kv_used_tokens - engine.prefilling_left_tokens) / profile.kv_tokens,
            queued_prefill_tokens=engine.prefill_left_tokens,
            step=observer.step_model,
            max_batched_tokens=profile.max_batched_tokens,
            kv_tokens=profile.kv_tokens,
            stepping_tokens=self._stepping_tokens,
            stepping_s=now_s - self._stepping_since_s,
            steps_ahead=profile.steps_ahead,
            sequences_per_s=observer.sequences_per_s(running),
            tpot_s=observer.tpot_s,
            ttft_doubt=observer.ttft_doubt,
            queue_doubt=observer.queue_doubt,
        )

    def _step_begins(self, now_s: float) -> None:
        """A step is under way from now on: with so much of the prompts as one holds."""
        engine = self.simulated
        self._stepping_since_s = now_s
        room = engine.profile.max_batched_tokens - engine.running
        self._stepping_tokens = max(0, min(engine.prefill_left_tokens, room))
