"""The engines of a node: one under a supervisor for each model that runs here, built, kept alive and ended together."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext

from node.catalogue import LocalModel, Model
from node.dashboard.history import History, engine_state
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending, Outcome
from node.errors import SettingsError
from node.guard import SocketGuard
from node.local.arguments import is_self_contained
from node.local.counts import EngineCounts
from node.local.engine import LocalEngine
from node.local.memory import wait_for_memory
from node.local.orphans import EngineNote, notes_folder, sweep_orphans
from node.local.processes import EngineProcess
from node.local.supervision import Rules, Supervision
from node.local.supervisor import Supervisor, Surroundings
from node.routing.policy import LOCAL
from node.settings import Settings
from node.watch.watch import GpuWatch

_log = logging.getLogger("spillway")
# How long memory of an engine that has ended may take to be free again; the driver needs a second or two.
_MEMORY_WITHIN_S = 30.0
# Nothing runs in an engine that is stopped: its processes only take themselves apart, for three seconds of CPU.
_STOP_S = 4.0


class Engines(Mapping[str, Supervisor]):
    """The supervisors by model, of those models that have a local part.

    `models` and `settings` are those of the moment. `lane` gives a model's lane, which is told of each step of its
    engine. `environ` says where nodes note down their engines' processes.
    """

    def __init__(
        self,
        *,
        models: Callable[[], Mapping[str, Model]],
        settings: Callable[[], Settings],
        lane: Callable[[str], Lane],
        watch: GpuWatch,
        guard: SocketGuard,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        unix_s: Callable[[], float],
    ) -> None:
        self._models = models
        self._settings = settings
        self._lane = lane
        self._watch = watch
        self._guard = guard
        self._notes = notes_folder(environ)
        self._clock = clock
        self._running: asyncio.Task[None] | None = None
        self._supervisors = {
            name: self._supervisor(name, model.local) for name, model in models().items() if model.local is not None
        }
        self.histories = {name: History(unix_s) for name in self._supervisors}
        self.hopeless: SettingsError | None = None
        """What keeps a model from being served here or elsewhere, once the first start of its engine has shown it."""
        self.on_hopeless: Callable[[], None] = lambda: None

    def __getitem__(self, name: str) -> Supervisor:
        return self._supervisors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._supervisors)

    def __len__(self) -> int:
        return len(self._supervisors)

    def start(self) -> None:
        """Begin to load them and to keep them alive, in the background."""
        for name in self:
            self._note_change(name)
        if self:
            self._running = asyncio.create_task(self._keep_alive())
            self._running.add_done_callback(_must_not_fail)

    async def stop(self) -> None:
        """End them all. Leaves no process behind."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await asyncio.gather(*(engine.stop(_STOP_S) for engine in self.values()))

    def retry_after(self, name: str) -> Callable[[], float | None]:
        """What tells when the model's engine should be back, as `ServedModel` wants it."""
        return self[name].retry_after_s if name in self else lambda: None

    def vocabulary_size(self, name: str) -> int | None:
        """How many token ids the model has; None without an engine, or until it has loaded it."""
        return self[name].engine.vocabulary_size if name in self else None

    def lives(self) -> dict[str, Callable[[], Supervision]]:
        """What tells how each one's life stands."""
        return {name: functools.partial(_life, each) for name, each in self.items()}

    def counts(self) -> dict[str, Callable[[], EngineCounts | None]]:
        """What tells what vLLM's own metrics would say of each."""
        return {name: functools.partial(_counts, each) for name, each in self.items()}

    def learn(self, outcome: Outcome) -> None:
        """Teach the model's engine what has become of a request for it."""
        if outcome.model not in self:
            return
        taught = self[outcome.model].engine.work.stats
        if outcome.may_leave and outcome.ttft_s is not None and outcome.backend != "cache":
            here = outcome.backend == LOCAL or outcome.was_kept
            taught.promised(kept=outcome.ttft_s <= outcome.ttft_budget_s, here=here)
        if outcome.backend != LOCAL or outcome.usage is None:
            return
        for each in outcome.foreseen:
            taught.began(predicted_s=each.predicted_s, took_s=each.took_s, queued=each.queued)
        if outcome.ending is Ending.DONE:
            taught.answered(round(outcome.usage.completion_tokens / outcome.choices))

    def _supervisor(self, name: str, model: LocalModel) -> Supervisor:
        settings = self._settings().supervision
        note = EngineNote(self._notes, name)

        async def noted(processes: frozenset[EngineProcess]) -> None:
            await asyncio.to_thread(note.write, processes)

        return Supervisor(
            name,
            model,
            Rules(stall_s=settings.stall_s, attempts=settings.rebuild_attempts, window_s=settings.rebuild_window_s),
            Surroundings(
                build=functools.partial(
                    LocalEngine,
                    name,
                    model,
                    self._clock,
                    on_step=lambda: self._lane(name).moved_on(),
                    on_entered=lambda request_id: self._lane(name).entered(request_id),
                    on_progress=_log.info,
                    reaching_out=nullcontext if is_self_contained(model) else self._guard.fetching,
                ),
                memory=functools.partial(
                    wait_for_memory,
                    self._watch,
                    os.environ.get("CUDA_VISIBLE_DEVICES"),
                    model,
                    self._clock,
                    _MEMORY_WITHIN_S,
                ),
                note=noted,
                on_change=lambda: self._changed(name),
                clock=self._clock,
                patience_s=lambda: self._settings().routing.max_wait_s,
                rng=random.Random(),
            ),
        )

    def _changed(self, name: str) -> None:
        self._lane(name).engine_changed()
        self._note_change(name)

    def _note_change(self, name: str) -> None:
        self.histories[name].note(*engine_state(self[name].supervision))

    async def _keep_alive(self) -> None:
        """End what a node that was killed has left behind, then run the engines until this is cancelled."""
        try:
            if ended := await asyncio.to_thread(sweep_orphans, self._notes):
                _log.warning("ended engine processes of a node that was killed: %s", ended)
        except OSError as error:
            _log.warning("no look was taken for engine processes of a node that was killed: %s", error)
        await asyncio.gather(*(self._run(name) for name in self))

    async def _run(self, name: str) -> None:
        await self[name].run()
        life = self[name].supervision
        if life.given_up and life.starts == 1 and life.start_took_s is None and not self._models()[name].cloud:
            self.hopeless = SettingsError(f"{life.why}; nothing else can serve {name}")
            self.on_hopeless()


def _life(supervisor: Supervisor) -> Supervision:
    return supervisor.supervision


def _counts(supervisor: Supervisor) -> EngineCounts | None:
    return supervisor.engine.counts


def _must_not_fail(supervising: asyncio.Task[None]) -> None:
    """Say so if the engines are not watched over any more: nothing else would."""
    if not supervising.cancelled() and (error := supervising.exception()) is not None:
        _log.critical("the engines are no longer supervised: restart the node", exc_info=error)
