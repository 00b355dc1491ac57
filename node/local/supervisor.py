"""Keeps one model's engine alive: watches that it gets on, ends one that hangs, builds a new one in a dead one's place.

What is to be done is decided in `supervision`; this does it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from node.backend import Backend, Call
from node.catalogue import LocalModel
from node.errors import EngineDied, EngineUnavailable, RequestQuarantined, SettingsError
from node.local.backend import LocalBackend
from node.local.engine import LocalEngine
from node.local.processes import EngineProcess
from node.local.quarantine import Quarantine
from node.local.supervision import Event, Progress, Rules, Supervision, longest_step_s, patience
from node.routing.values import EngineLoad, EngineState

_log = logging.getLogger(__name__)

# What a caller is told to wait when nobody knows how long: until somebody has looked after the engine.
_RETRY_AFTER_S = 60.0
_LOOKS_TO_SUSPECT = 4  # looks at an engine within the time in which it becomes suspect
_LONGEST_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a supervisor is given beside its rules.

    `build` makes an engine that has not started; it gets `on_state`. `memory` returns once the device has room for
    one, or raises `EngineUnavailable`. `note` writes down which processes there are now, perhaps none; it may raise
    `OSError`. `on_change` is called on the event loop after each change of `Supervisor.state`.
    `patience_s` says how long a caller that cannot leave waits for the engine at most. `clock` gives monotonic seconds.
    """

    build: Callable[..., LocalEngine]
    memory: Callable[[], Awaitable[None]]
    note: Callable[[frozenset[EngineProcess]], Awaitable[None]]
    on_change: Callable[[], None]
    clock: Callable[[], float]
    patience_s: Callable[[], float]
    rng: random.Random


class Supervisor:
    """The engine of one model, whichever it is at the moment, as lanes and operators see it. `run` keeps it alive."""

    def __init__(self, model_name: str, model: LocalModel, rules: Rules, around: Surroundings) -> None:
        self.model_name = model_name
        self.model = model
        self._rules = rules
        self._around = around
        self._supervision = Supervision.begin(around.clock())
        self._quarantine = Quarantine()
        self._stirred = asyncio.Event()
        self._engine, self._backend = self._build()

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        return self._supervision.state

    @property
    def supervision(self) -> Supervision:
        """All that is known of its life so far."""
        return self._supervision

    @property
    def engine(self) -> LocalEngine:
        """The engine of this moment."""
        return self._engine

    def load(self, in_flight: int) -> EngineLoad:
        """The engine's load as routing is to take it, with `in_flight` sequences handed to it."""
        load, now_s = self._engine.load(in_flight), self._around.clock()
        state = self._supervision.shown_state(now_s, self._around.patience_s())
        if state is EngineState.READY and load.state is EngineState.DOWN:
            state = EngineState.SUSPECT  # it has just died; what failed with it asks before `_watch` knows
        slots = self._supervision.slots(load.max_sequences, now_s, self._rules)
        if state is load.state and slots == load.max_sequences:
            return load
        return replace(load, state=state, max_sequences=slots)

    def leaves(self) -> None:
        """A request of the model goes to the cloud."""
        self._engine.work.stats.leaves()

    def backend(self) -> Backend:
        """The seam through which calls are served."""
        return self._backend

    def retry_after_s(self) -> float:
        """What to tell a caller that only the engine here can serve, and does not now."""
        back_in_s = self._supervision.back_in_s(self._around.clock())
        return _RETRY_AFTER_S if back_in_s is None else back_in_s

    def document(self) -> dict[str, Any]:
        """What an operator wants to know: state, since when, how often it failed, why, and what comes next."""
        supervision, now_s = self._supervision, self._around.clock()
        rebuild_at_s = supervision.rebuild_at_s
        return {
            "state": supervision.state.value,
            "since_s": round(now_s - supervision.since_s, 1),
            "starts": supervision.starts,
            "deaths": supervision.deaths,
            "hangs": supervision.hangs,
            "why": supervision.why,
            "given_up": supervision.given_up,
            "rebuild_in_s": None if rebuild_at_s is None else round(max(0.0, rebuild_at_s - now_s), 1),
            "requests_under_suspicion": len(self._quarantine),
        }

    async def run(self) -> None:
        """Start the engine and keep it alive, until it is given up or this is cancelled; `stop` comes after."""
        while True:
            await self._live()
            rebuild_at_s = self._supervision.rebuild_at_s
            if rebuild_at_s is None:
                _log.critical(
                    "%s: THE ENGINE IS GIVEN UP after failure %d: %s. What may leave is served by the cloud, if it has "
                    "the model, the rest is refused. Restart the node when the cause is removed",
                    self.model_name,
                    self._supervision.deaths,
                    self._supervision.why,
                )
                return
            await asyncio.sleep(max(0.0, rebuild_at_s - self._around.clock()))
            self._engine, self._backend = self._build(self._supervision.starts + 1)
            self._enter(self._supervision.after(Event.REBUILD, self._around.clock()))

    async def stop(self, grace_s: float = 10.0) -> None:
        """End the engine and all its processes within about `grace_s` seconds, whatever it is doing."""
        await self._engine.stop(grace_s)
        await self._note(frozenset())

    def _build(self, number: int = 1) -> tuple[LocalEngine, LocalBackend]:
        engine = self._around.build(on_state=lambda state: self._stirred.set())
        return engine, LocalBackend(engine, lambda call: self._guard(call, engine, number))

    async def _live(self) -> None:
        """One engine from its start to its failure, which is noted when this returns, and nothing is left of it."""
        engine = self._engine
        for_good = False
        try:
            await self._around.memory()
            await engine.start()
            await self._note(engine.processes)
        except SettingsError as error:
            # What has come up once with these settings may do so again: there may have been more memory then.
            event, why, for_good = Event.DIED, error.message, self._supervision.start_took_s is None
        except EngineUnavailable as error:
            event, why = Event.DIED, error.message
        else:
            self._enter(self._supervision.after(Event.STARTED, self._around.clock()))
            event, why = await self._watch(engine)
        changed = self._supervision.failed(
            event, self._around.clock(), self._rules, self._around.rng, why=why, for_good=for_good
        )
        self._enter(changed)
        if not for_good:  # which `run` says, once
            _log.error("%s: %s (failure %d)", self.model_name, why, changed.deaths)
        if event is Event.HUNG:
            await engine.kill()
        await self.stop()

    async def _note(self, processes: frozenset[EngineProcess]) -> None:
        try:
            await self._around.note(processes)
        except OSError as error:  # without it an orphan may have to be ended by hand, and everything else goes on
            _log.warning("%s: the engine's processes are not noted down: %s", self.model_name, error)

    async def _watch(self, engine: LocalEngine) -> tuple[Event, str]:
        """Returns when a ready engine has died or hangs, and why that is thought."""
        clock, rules = self._around.clock, self._rules
        ready_s = clock()
        look_s = min(_LONGEST_LOOK_S, rules.stall_s * rules.suspect_share / _LOOKS_TO_SUSPECT)
        progress = Progress(engine.steps, ready_s)
        probe: asyncio.Task[None] | None = None
        try:
            while True:
                await self._rest(look_s)
                if engine.state is EngineState.DOWN:
                    return Event.DIED, "the engine has died"
                now_s = clock()
                progress = progress.look(engine.steps, now_s, busy=engine.has_work, longest_look_s=2 * look_s)
                load = engine.load(0)
                longest_s = longest_step_s(load.step, load.max_sequences, load.max_batched_tokens)
                allowed = patience(rules, now_s - ready_s, longest_s)
                event = progress.verdict(self._supervision.state, allowed)
                if event is Event.HUNG:
                    return event, f"the engine hangs: it has work, and made no step for {progress.stalled_s:.0f} s"
                if event is not None:
                    self._enter(self._supervision.after(event, now_s))
                    _log.warning("%s: %s", self.model_name, _SAID[event])
                if self._supervision.state is EngineState.SUSPECT and probe is None:
                    # Nothing is given to an engine under suspicion: without this, one whose callers leave stays there.
                    probe = asyncio.create_task(engine.probe())
                    probe.add_done_callback(_heard)
                elif self._supervision.state is EngineState.READY:
                    probe = None
        finally:
            if probe is not None:
                probe.cancel()

    async def _rest(self, longest_s: float) -> None:
        """For `longest_s`, or until the engine's state changes."""
        try:
            async with asyncio.timeout(longest_s):
                await self._stirred.wait()
        except TimeoutError:
            return
        self._stirred.clear()

    def _enter(self, supervision: Supervision) -> None:
        self._supervision = supervision
        self._around.on_change()

    @contextmanager
    def _guard(self, call: Call, engine: LocalEngine, number: int) -> Iterator[None]:
        """Around a call while `engine`, the `number`-th, works on it: notes the call when the engine dies of it.

        Raises `RequestQuarantined`, and says in an `EngineUnavailable` when to come back.
        """
        held_for_s = self._quarantine.held_for_s(call, self._around.clock())
        if held_for_s is not None:
            raise RequestQuarantined(
                "The local engine has died twice while it worked on this very request, and is not given it for the "
                f"next {math.ceil(held_for_s / 60)} minutes.",
                retry_after_s=held_for_s,
            )
        try:
            yield
        except EngineUnavailable as error:
            if isinstance(error, EngineDied):
                engine.died()
                self._quarantine.died_with(call, number, self._around.clock())
            error.retry_after_s = self._supervision.start_took_s or self.retry_after_s()
            raise


_SAID = {
    Event.STALLED: "the engine has work and makes no step: it is under suspicion, and new requests go elsewhere",
    Event.MOVED: "the engine makes steps again",
}


def _heard(probe: asyncio.Task[None]) -> None:
    """Take what became of a probe: whether the engine moves is read from its steps, and its death has other signs."""
    if not probe.cancelled() and isinstance(error := probe.exception(), EngineUnavailable):
        _log.debug("probe: %s", error.message)
