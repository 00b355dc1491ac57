"""The only place that builds parts and hands them down: settings in, a running node out."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import ASGIApp

from node.api.admin import AdminParts, GuardedAdmin, build_admin
from node.api.app import build_app
from node.api.auth import Keyring
from node.api.completions import Parts
from node.api.dashboard import DashboardParts, Viewers, dashboard_routes, page_files
from node.api.door import Door
from node.api.operator import OperatorParts, operator_router
from node.api.rates import RateLimits
from node.audit.refusals import refusal_row
from node.caller import budget_of, caller_of
from node.catalogue import LocalModel, Model
from node.catalogue_files import default_models_dir, load_catalogue, with_engine_args
from node.cloud.config import AnswerClocks, ProviderConfig
from node.cloud.gate import EgressGate
from node.cloud.provider import CloudProvider
from node.dashboard.decisions import DecisionLog
from node.dashboard.feed import BudgetWindow
from node.dashboard.history import History, engine_state
from node.dashboard.reader import Reader, Sources
from node.dashboard.sampler import Sampler
from node.dispatch.accounts import Settlement, entry_for, worth
from node.dispatch.conversations import Conversations
from node.dispatch.dispatcher import Dispatcher, ServedModel
from node.dispatch.experience import Experience
from node.dispatch.health import Checked, HealthChecks
from node.dispatch.hedging import Hedging
from node.dispatch.journey import Journey
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending, Outcome
from node.dispatch.providers import Providers, ProviderState
from node.dispatch.sharing import Sharing
from node.dispatch.standing import OPERATOR, Standing
from node.errors import SettingsError, SpillwayError
from node.guard import SocketGuard
from node.key_promises import unkept_promise
from node.key_watch import KeyWatch, check_keys
from node.keys_list import keys_document
from node.local.arguments import is_folder, is_self_contained
from node.local.counts import EngineCounts
from node.local.engine import LocalEngine
from node.local.memory import wait_for_memory
from node.local.orphans import EngineNote, notes_folder, sweep_orphans
from node.local.processes import EngineProcess
from node.local.supervision import Rules, Supervision
from node.local.supervisor import Supervisor, Surroundings
from node.metrics import Metrics
from node.metrics.cache import CacheMetrics
from node.metrics.door import DoorMetrics
from node.metrics.engines import EngineMetrics
from node.metrics.gpus import GpuMetrics
from node.metrics.loop import LoopMetrics
from node.metrics.money import MoneyMetrics
from node.metrics.providers import ProviderMetrics
from node.metrics.requests import RequestMetrics
from node.metrics.vllm import VllmMetrics
from node.privacy.checks import check_pins, check_zones, without_cloud
from node.privacy.content import ContentRules
from node.routing.breaker import BreakerLimits
from node.routing.policy import LOCAL, OverflowPolicy, Policy
from node.routing.retry_budget import RetryBudget, RetryLimits
from node.routing.targets import TargetsPolicy
from node.routing.ttft import HIGH_SHARE, ProviderTtft
from node.routing.values import Decision, EngineState, Features, Limits, Reason, Snapshot, Zone
from node.settings import ProviderSettings, Settings, is_loopback
from node.spending import SpendingWatch
from node.store.admin_key import admin_key
from node.store.cache import MemoryCache
from node.store.database import Database, StoreUnavailable
from node.store.keys import SqlKeyStore, StoredKey
from node.store.ledger import SqlLedger
from node.store.secret import CACHE_SALT, kept_secret, new_secret
from node.store.totals import Totals
from node.store.usage_reader import UsageReader
from node.store.windows import hour_of, seconds_until_next, windows
from node.store_place import place_for
from node.watch.host import HostReader
from node.watch.host_watch import HostWatch
from node.watch.loop_watch import LoopWatch
from node.watch.nvml import NvmlReader
from node.watch.values import free_bytes_for
from node.watch.watch import GpuWatch

if TYPE_CHECKING:
    from node.traces.export import Traces

_log = logging.getLogger("spillway")
# How long memory of an engine that has ended may take to be free again; the driver needs a second or two.
_MEMORY_WITHIN_S = 30.0
# Nothing runs in an engine that is stopped: its processes only take themselves apart, for three seconds of CPU.
_ENGINE_STOP_S = 4.0


class Node:
    """Every part of one running node, in the order in which they depend on each other.

    `start()` begins loading engines in the background: the node answers from the cloud what may leave, meanwhile.
    `rename` puts another provider in a catalogue provider's place, by name. `guard` watches the process's sockets.
    Raises `SettingsError` when the settings, the catalogue and the environment do not fit together.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str] = os.environ,
        rename: Mapping[str, str] = MappingProxyType({}),
        guard: SocketGuard | None = None,
    ) -> None:
        settings = without_cloud(settings)
        self.settings = settings
        self.environ = environ
        self.rename = rename
        self.guard = guard or SocketGuard()
        clock = time.monotonic
        self.models = served_models(settings, rename)
        self.watch = GpuWatch(NvmlReader(), clock, interval_s=settings.watch.interval_s)
        configs = provider_configs(settings, environ)
        check_pins(settings, self.models)
        self.gate = EgressGate(configs)
        self.place = place_for(settings, emulated=bool(rename), environ=environ)
        self.database = Database(self.place)
        self.ledger = SqlLedger(self.database, node_budget=lambda: budget_of(self.settings.budget))
        self.providers = Providers(
            {config.name: provider_state(config, settings.providers[config.name], self.gate) for config in configs},
            random.random,
            may_spend=lambda: self.ledger.available,
        )
        self.health = HealthChecks(
            checked_providers(settings, self.providers, self.models.values()),
            self._probe,
            clock=clock,
            random=random.random,
        )
        self._notes = notes_folder(environ)
        self.engines = {
            model.name: self._supervisor(model.name, model.local, clock)
            for model in self.models.values()
            if model.local is not None and not settings.cloud_only
        }
        self.policies = {name: ChangeablePolicy(policy_for(settings)) for name in self.models}
        self.lanes = {name: self._lane(name) for name in self.models}
        self.totals = Totals()
        self.traces = traces_for(settings, self.guard)
        self.request_metrics = RequestMetrics(self.models)
        self.spending = SpendingWatch(self.database, wall_us)
        self.experience = {name: Experience() for name in self.models}
        self.conversations = Conversations(clock)
        self.dispatcher = Dispatcher(
            served={
                name: ServedModel(model, self.lanes[name], self.retry_after(name))
                for name, model in self.models.items()
            },
            providers=self.providers,
            conversations=self.conversations,
            retries=RetryBudget(RetryLimits()),
            ledger=self.ledger,
            random=random.random,
            clock=clock,
            on_outcome=self._on_outcome,
            hedging=hedging_for(settings),
        )
        self.cache = MemoryCache(
            max_bytes=settings.cache.max_bytes,
            max_entry_bytes=settings.cache.max_entry_bytes,
            ttl_s=settings.cache.ttl_s,
            clock=clock,
        )
        self.keyring = Keyring(
            settings.keys, None, on_loopback=is_loopback(settings.listen.host), secret=new_secret(), now_us=wall_us
        )
        self.key_watch = KeyWatch(SqlKeyStore(self.database, wall_us), self._on_keys)
        self.rates = RateLimits(clock)
        self._opened = False
        self._admin_key_kept: str | None = None
        self.usage = UsageReader(self.place)
        self.content_rules = ContentRules(settings.privacy.content_rules)
        self.host = HostReader(settings.host.max_rss_bytes)
        self.host_watch = HostWatch(self.host, lambda: self.door.inside)
        self.door = Door(strain=self.host_watch.strain, max_bytes=lambda: self.settings.api.max_bytes_in_flight)
        self.loop_watch = LoopWatch(clock)
        self.metrics = Metrics(
            (
                self.request_metrics,
                EngineMetrics(self.lanes, {name: self._life(name) for name in self.engines}),
                VllmMetrics({name: self._counts(name) for name in self.engines}),
                ProviderMetrics(lambda: self.providers.states, clock),
                MoneyMetrics(self.ledger, lambda: self.spending.latest, lambda: budget_of(self.settings.budget)),
                GpuMetrics(self.watch.state),
                CacheMetrics(self.cache),
                DoorMetrics(self.door, self.host_watch.strain, lambda: self.guard.refused),
                LoopMetrics(self.loop_watch.pauses),
            )
        )
        self.decisions = DecisionLog(time.time)
        self.engine_histories = {name: History(time.time) for name in self.engines}
        self.sampler = Sampler(Reader(self._sources(), self.decisions), unix_s=time.time)
        self._running: list[asyncio.Task[None]] = []
        self.hopeless: SettingsError | None = None
        """What keeps a model from being served here or elsewhere, once the first start of its engine has shown it."""
        self.on_hopeless: Callable[[], None] = lambda: None

    def asgi(self) -> ASGIApp:
        """The HTTP application."""
        parts = Parts(
            settings=lambda: self.settings,
            keyring=self.keyring,
            rates=self.rates,
            door=self.door,
            dispatcher=self.dispatcher,
            sharing=Sharing(self.cache),
            experience=self.experience,
            conversations=self.conversations,
            vocabulary_size=self._vocabulary_size,
            clock=time.monotonic,
            report=self._report,
            content_rules=lambda: self.content_rules,
            begin_trace=self.traces.begin if self.traces is not None else None,
        )
        operator = OperatorParts(
            ready=self.readiness,
            models=self.model_list,
            metrics=self.metrics,
            open_metrics=lambda: self.settings.api.open_metrics,
            keyring=self.keyring,
            usage=self.usage.usage,
            now_us=wall_us,
        )
        viewers = Viewers(self._admin_key, self.keyring, lambda: self.settings.listen.host)
        return build_app(
            parts,
            operator_router(operator),
            dashboard_routes(
                DashboardParts(
                    sampler=self.sampler,
                    decisions=self.decisions,
                    check=viewers.check,
                    may_change=False,
                    ending=lambda: self.door.closed,
                )
            ),
        )

    def admin_asgi(self) -> GuardedAdmin:
        """The admin API, for a port of its own. Raises `SettingsError` where its key cannot be kept."""
        parts = AdminParts(
            key=self._admin_key(),
            host=self.settings.admin.host,
            stats=self.stats,
            metrics=self.metrics.text,
            usage=self.usage.usage,
            keys=self.keys,
            providers=lambda: self.providers.document(time.monotonic()),
            isolate=self._isolate,
            restore=self._restore,
            now_us=wall_us,
        )
        dashboard = DashboardParts(
            sampler=self.sampler,
            decisions=self.decisions,
            check=lambda scope: None,  # the guard in front of it has asked for the key
            may_change=True,
            ending=lambda: False,  # how the end goes on can be watched there
        )
        return build_admin(parts, dashboard_routes(dashboard), page_files())

    def open(self) -> None:
        """Open the database and read what is needed to let anybody in. Blocks; done by `start()` if not before.

        Raises `SettingsError` where keys in the settings and in the database do not go together.
        """
        self._opened = True
        try:
            self.database.open()
            self.keyring.secret = kept_secret(self.database, CACHE_SALT)
        except StoreUnavailable as error:
            _log.error("keys cannot be read: %s", error)
        keys = self.key_watch.read()
        check_keys(self.settings.listen.host, self.settings.keys, keys, wall_us())
        self.key_watch.take_up(keys)
        good = [each.caller for each in keys.stored or () if each.is_good(wall_us())]
        for caller in (*map(caller_of, self.settings.keys), *dict.fromkeys(good)):
            if (promise := unkept_promise(caller, self.settings, self.models)) is not None:
                _log.warning("%s", promise)

    async def start(self) -> None:
        """Begin to write the ledger, to watch the GPU and to load the engines; returns at once."""
        if not self._opened:
            await asyncio.to_thread(self.open)
        self.ledger.start()
        self.key_watch.start()
        self.spending.start()
        self.watch.start()
        self.host_watch.start()
        self.loop_watch.start()
        self.health.start()
        for name, engine in self.engines.items():
            self.engine_histories[name].note(*engine_state(engine.supervision))
        self.sampler.start()
        if self.engines:
            self._running = [asyncio.create_task(self._keep_alive())]
            self._running[0].add_done_callback(_must_not_fail)

    async def stop(self) -> None:
        """Stop the engines, close every cloud connection, stop watching. Leaves no process behind."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(engine.stop(_ENGINE_STOP_S) for engine in self.engines.values()))
        await self.sampler.stop()
        await self.key_watch.stop()
        await self.spending.stop()
        await self.health.stop()
        await self.gate.aclose()
        await self.usage.close()
        await self.ledger.close()
        if self.traces is not None:
            await self.traces.stop()
        await self.loop_watch.stop()
        await self.host_watch.stop()
        await self.watch.stop()

    def readiness(self) -> dict[str, Any]:
        """Whether every served model has somewhere to go, and each engine's state and life. Not while the node ends.

        An engine that starts for the first time is waited for; after that the cloud may stand in for it.
        """
        now_s = time.monotonic()
        routes: dict[str, dict[str, Any]] = {}
        for name, model in self.models.items():
            engine = self.engines.get(name)
            cloud = any(
                option.available and option.price is not None
                for option in self.providers.options_for(model, now_s, frozenset())
            )
            routes[name] = {
                "engine": engine.state.value if engine else None,
                "cloud": cloud,
                "supervision": engine.document() if engine else None,
                "ready": _has_a_route(engine.supervision if engine else None, cloud),
            }
        ready = all(route["ready"] for route in routes.values())
        return {"ready": ready and not self.door.closed, "draining": self.door.closed, "models": routes}

    def model_list(self) -> dict[str, Any]:
        """The OpenAI model list, with the context each model really has here."""
        data = []
        for name, model in self.models.items():
            supervisor = self.engines.get(name)
            if supervisor is not None:
                context: int | None = supervisor.engine.context_tokens
            else:
                context = max((each.context_tokens for each in model.cloud), default=None)
            data.append({"id": name, "object": "model", "created": 0, "owned_by": "spillway", "max_model_len": context})
        return {"object": "list", "data": data}

    def stats(self) -> dict[str, Any]:
        """Totals, cache, queues, engines and GPUs at this moment."""
        gpus = self.watch.state()
        return {
            **self.totals.document(),
            "cache": {"entries": len(self.cache), "bytes": self.cache.used_bytes},
            "queues": {name: lane.depth for name, lane in self.lanes.items()},
            "providers": self.providers.document(time.monotonic()),
            "ledger": self.ledger.document(),
            "sockets": self.guard.document(),
            "door": {
                "inside": self.door.inside,
                "held_bytes": self.door.held_bytes,
                "turned_away": dict(sorted(self.door.turned_away.items())),
                "strain": dataclasses.asdict(self.host_watch.strain()),
            },
            "loop": self.loop_watch.document(),
            "engines": {name: _engine_document(lane) for name, lane in self.lanes.items() if lane.engine is not None},
            "supervision": {name: engine.document() for name, engine in self.engines.items()},
            "gpus": None if gpus.gpus is None else [dataclasses.asdict(gpu) for gpu in gpus.gpus],
            "no_gpu_because": gpus.reason,
        }

    async def keys(self) -> dict[str, Any]:
        """The callers' keys, of the settings and of the ledger, without what could be used as one."""
        return keys_document(await self.usage.keys(), self.settings.keys, wall_us())

    def _isolate(self, provider: str) -> None:
        self.providers.isolate(provider, time.monotonic())
        _log.warning("%s is left alone: the operator wants it so", provider)

    def _restore(self, provider: str) -> None:
        self.providers.restore(provider, time.monotonic())
        _log.warning("%s is used again: the operator wants it so", provider)

    async def _keep_alive(self) -> None:
        """End what a node that was killed has left behind, then run the engines until this is cancelled."""
        try:
            if ended := await asyncio.to_thread(sweep_orphans, self._notes):
                _log.warning("ended engine processes of a node that was killed: %s", ended)
        except OSError as error:
            _log.warning("no look was taken for engine processes of a node that was killed: %s", error)
        await asyncio.gather(*(self._run_engine(name) for name in self.engines))

    async def _run_engine(self, name: str) -> None:
        await self.engines[name].run()
        life = self.engines[name].supervision
        if life.given_up and life.starts == 1 and life.start_took_s is None and not self.models[name].cloud:
            self.hopeless = SettingsError(f"{life.why}; nothing else can serve {name}")
            self.on_hopeless()

    def _supervisor(self, name: str, model: LocalModel, clock: Callable[[], float]) -> Supervisor:
        settings = self.settings.supervision
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
                    clock,
                    on_step=lambda: self.lanes[name].moved_on(),
                    on_entered=lambda request_id: self.lanes[name].entered(request_id),
                    on_progress=_log.info,
                    reaching_out=nullcontext if is_self_contained(model) else self.guard.fetching,
                ),
                memory=functools.partial(
                    wait_for_memory, self.watch, os.environ.get("CUDA_VISIBLE_DEVICES"), model, clock, _MEMORY_WITHIN_S
                ),
                note=noted,
                on_change=lambda: self._engine_changed(name),
                clock=clock,
                patience_s=lambda: self.settings.routing.max_wait_s,
                rng=random.Random(),
            ),
        )

    def _engine_changed(self, name: str) -> None:
        self.lanes[name].engine_changed()
        self.engine_histories[name].note(*engine_state(self.engines[name].supervision))

    def _life(self, name: str) -> Callable[[], Supervision]:
        return lambda: self.engines[name].supervision

    def _counts(self, name: str) -> Callable[[], EngineCounts | None]:
        return lambda: self.engines[name].engine.counts

    def retry_after(self, name: str) -> Callable[[], float | None]:
        """What tells when the model's engine should be back, as `ServedModel` wants it."""
        engine = self.engines.get(name)
        return engine.retry_after_s if engine is not None else lambda: None

    def _vocabulary_size(self, name: str) -> int | None:
        engine = self.engines.get(name)
        return engine.engine.vocabulary_size if engine is not None else None

    def _lane(self, name: str) -> Lane:
        engine = self.engines.get(name)
        return Lane(
            engine=engine,
            policy=self.policies[name],
            cloud_options=lambda failed: self.providers.options_for(
                self.models[name],
                time.monotonic(),
                failed,
                HIGH_SHARE if engine is None else engine.engine.cloud_share,
            ),
            vram_free_bytes=lambda: free_bytes_for(self.watch.latest(), os.environ.get("CUDA_VISIBLE_DEVICES")),
            clock=time.monotonic,
        )

    def _on_keys(self, stored: tuple[StoredKey, ...] | None) -> None:
        self.keyring.replace(self.settings.keys, stored)
        try:
            check_keys(self.settings.listen.host, self.settings.keys, self.key_watch.latest, wall_us())
        except SettingsError as error:
            _log.error("%s", error.message)

    def _admin_key(self) -> str:
        if self._admin_key_kept is None:
            self._admin_key_kept = admin_key(self.place.folder, self.environ)
        return self._admin_key_kept

    def _sources(self) -> Sources:
        return Sources(
            totals=self.totals,
            lanes=self.lanes,
            engines=self.engines,
            histories=self.engine_histories,
            providers=lambda: self.providers,
            gpus=self.watch.state,
            readiness=self.readiness,
            ledger=self.ledger.document,
            strain=self.host_watch.strain,
            inside=lambda: self.door.inside,
            budget=self._budget_left,
            clock=time.monotonic,
            unix_s=time.time,
        )

    def _budget_left(self) -> tuple[BudgetWindow, ...] | None:
        now_us = wall_us()
        limited = list(windows(budget_of(self.settings.budget), hour_of(now_us)))
        if not limited:
            return ()
        if (spending := self.spending.latest) is None:
            return None
        return tuple(
            BudgetWindow(
                window=name,
                limit_nano_usd=limit_nano_usd,
                spent_nano_usd=spending.nano_usd[name],
                ends_in_s=seconds_until_next(name, now_us),
            )
            for name, _, limit_nano_usd in limited
        )

    async def _probe(self, provider: str, timeout_s: float) -> tuple[str, ...]:
        return await self.gate.probe(provider, timeout_s=timeout_s)

    def _on_outcome(self, outcome: Outcome) -> None:
        self.totals.add(outcome)
        self.decisions.add(outcome)
        self.request_metrics.add(outcome)
        self.rates.settle(outcome)
        self.experience[outcome.model].learn(outcome)
        if (refusal := refusal_row(outcome, node=self.ledger.node, at_us=wall_us())) is not None:
            self.ledger.audit(refusal)
        supervisor = self.engines.get(outcome.model)
        if supervisor is None:
            return
        engine = supervisor.engine
        if outcome.may_leave and outcome.ttft_s is not None and outcome.backend != "cache":
            here = outcome.backend == LOCAL or outcome.was_kept
            engine.promised(kept=outcome.ttft_s <= outcome.ttft_budget_s, here=here)
        if outcome.backend != LOCAL or outcome.usage is None:
            return
        for each in outcome.foreseen:
            engine.began(predicted_s=each.predicted_s, took_s=each.took_s, queued=each.queued)
        if outcome.ending is Ending.DONE:
            engine.answered(round(outcome.usage.completion_tokens / outcome.choices))

    def _report(self, journey: Journey, ending: Ending, error: SpillwayError | None) -> None:
        """A request that the cache answered, or that read along with another one."""
        outcome = journey.outcome(ending, error, time.monotonic())
        if journey.call.trace is not None:
            journey.call.trace.came_to(outcome)
        self._on_outcome(outcome)
        at_list, in_cloud = (None, None) if outcome.usage is None else worth(journey.model, outcome.usage)
        self.ledger.note(
            entry_for(
                journey.call,
                journey.features,
                number=1,
                backend=outcome.backend or "",
                served_model=outcome.served_model or "",
                rule=Reason.CACHE_HIT,
            ),
            Settlement(
                charged_nano_usd=0,
                ending=ending,
                error_code=outcome.error_code,
                usage=outcome.usage,
                list_nano_usd=at_list,
                cloud_nano_usd=in_cloud,
                queue_s=outcome.queue_s,
                ttft_s=outcome.ttft_s,
                total_s=outcome.total_s,
            ),
        )


def wall_us() -> int:
    """The wall clock, in UTC microseconds since 1970."""
    return time.time_ns() // 1000


def _must_not_fail(supervising: asyncio.Task[None]) -> None:
    """Say so if the engines are not watched over any more: nothing else would."""
    if not supervising.cancelled() and (error := supervising.exception()) is not None:
        _log.critical("the engines are no longer supervised: restart the node", exc_info=error)


def _has_a_route(engine: Supervision | None, cloud: bool) -> bool:
    if engine is None:
        return cloud
    if engine.state is EngineState.STARTING and engine.starts == 1:
        return False
    return engine.state is EngineState.READY or cloud


def _engine_document(lane: Lane) -> dict[str, Any]:
    assert lane.engine is not None
    document = dataclasses.asdict(lane.engine.load(lane.in_flight))
    del document["capabilities"]
    return document


class ChangeablePolicy:
    """A policy whose limits can be exchanged under the lane that uses it."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def decide(self, features: Features, snapshot: Snapshot, now_s: float) -> Decision:
        """What the policy of the moment says."""
        return self.policy.decide(features, snapshot, now_s)

    def is_worth_asking(self, features: Features, snapshot: Snapshot) -> bool:
        """What the policy of the moment says."""
        return self.policy.is_worth_asking(features, snapshot)


def policy_for(settings: Settings) -> TargetsPolicy:
    """The policy with the settings' limits."""
    routing = settings.routing
    limits = Limits(
        max_queue_depth=routing.max_queue_depth,
        max_kv_cache_usage=routing.max_kv_cache_usage,
        min_free_vram_bytes=routing.min_free_vram_bytes,
        feed_ahead=routing.feed_ahead,
        margin_s=routing.margin_ms / 1000,
        feed_s=None if routing.feed_ms is None else routing.feed_ms / 1000,
        tpot_budget_s=None if routing.tpot_budget_ms is None else routing.tpot_budget_ms / 1000,
    )
    return TargetsPolicy(OverflowPolicy(limits))


def served_models(settings: Settings, rename: Mapping[str, str]) -> dict[str, Model]:
    """The models to serve as the catalogue on disk has them now, reduced to what the settings allow.

    `rename` puts another provider in a catalogue provider's place. Raises `SettingsError`.
    """
    catalogue = load_catalogue([default_models_dir(), *(Path(folder) for folder in settings.catalogue)])
    served: dict[str, Model] = {}
    for name in settings.models:
        model = catalogue.get(name)
        if model is None:
            known = ", ".join(sorted(catalogue.models))
            raise SettingsError(f"models: there is no {name!r} in the catalogue; it has {known}")
        named = [dataclasses.replace(each, provider=rename.get(each.provider, each.provider)) for each in model.cloud]
        cloud = tuple(each for each in named if each.provider in settings.providers)
        elsewhere = dict.fromkeys(each.provider for each in named if each.provider not in settings.providers)
        local = model.local if not settings.cloud_only else None
        if local is not None and is_folder(local) and not Path(local.source, "config.json").is_file():
            raise SettingsError(f"models: {name!r}: there is no model in {local.source}; correct its catalogue entry")
        if local is not None and (overrides := settings.engine.get(name)):
            local = with_engine_args(name, local, overrides)
        if local is None and not cloud:
            raise SettingsError(
                f"models: {name!r} has no engine here and none of its cloud equivalents' providers is configured"
                + (", or may be used (privacy.residency: premises)" if settings.privacy.residency != "any" else "")
            )
        served[name] = dataclasses.replace(model, local=local, cloud=cloud, out_of_reach=tuple(elsewhere))
    return served


def hedging_for(settings: Settings) -> Hedging | None:
    """How copies may be sent, None for never."""
    routing = settings.routing
    if routing.hedge_share == 0.0:
        return None
    budget = RetryBudget(RetryLimits(share=routing.hedge_share, at_least=1.0))
    return Hedging(budget, routing.margin_ms / 1000)


def provider_configs(settings: Settings, environ: Mapping[str, str]) -> list[ProviderConfig]:
    """What the settings say about each provider, with its key from `environ`. Raises `SettingsError`."""
    configs = [_provider_config(name, each, environ) for name, each in settings.providers.items()]
    check_zones(configs)
    return configs


def provider_state(config: ProviderConfig, settings: ProviderSettings, gate: EgressGate) -> ProviderState:
    """A provider of which nothing is known yet, reached through `gate`."""
    standing = Standing(config.name, random.random, BreakerLimits(), slow_s=settings.slow_s)
    standing.under(account_of(config))
    if settings.isolated:
        standing.isolate(OPERATOR, time.monotonic())
    return ProviderState(
        provider=CloudProvider(config, gate, time.time),
        weight=config.weight,
        ttft=ProviderTtft(settings.assumed_ttft_s),
        standing=standing,
        zone=config.zone,
        emulated=config.emulated,
    )


def traces_for(settings: Settings, guard: SocketGuard) -> Traces | None:
    """What begins and sends traces, None where the settings want none: then OpenTelemetry is not even imported."""
    endpoint = settings.traces.otlp_endpoint
    if endpoint is None:
        return None
    from node.traces.export import Traces

    return Traces(endpoint, sample_share=settings.traces.sample_share, reach=guard.collecting)


def account_of(config: ProviderConfig) -> str:
    """Where a provider's calls go and under which key, to compare with another such; the key cannot be read from it."""
    return hashlib.sha256(f"{config.base_url}\n{config.api_key}".encode()).hexdigest()


def checked_providers(settings: Settings, providers: Providers, models: Iterable[Model]) -> dict[str, Checked]:
    """The providers whose health is looked after."""
    equivalents = [each for model in models for each in model.cloud]
    return {
        name: Checked(
            standing=providers.states[name].standing,
            interval_s=said.health_interval_s,
            models=frozenset(each.model for each in equivalents if each.provider == name),
        )
        for name, said in settings.providers.items()
        if said.health_interval_s is not None
    }


def _provider_config(name: str, settings: ProviderSettings, environ: Mapping[str, str]) -> ProviderConfig:
    key = ""
    if settings.api_key_env is not None:
        key = environ.get(settings.api_key_env, "")
        if not key:
            raise SettingsError(f"providers.{name}.api_key_env: {settings.api_key_env} is not set in the environment")
    clocks = AnswerClocks(
        first_content_s=settings.clocks.first_content_s,
        between_chunks_s=settings.clocks.between_chunks_s,
        total_s=settings.clocks.total_s,
    )
    return ProviderConfig(
        name=name,
        base_url=settings.base_url,
        api_key=key,
        zone=settings.zone,
        emulated=settings.emulated,
        weight=settings.weight,
        connect_s=settings.clocks.connect_s,
        clocks=clocks,
        model_clocks={
            model: dataclasses.replace(clocks, **{key: value for key, value in said.items() if value is not None})
            for model, own in settings.model_clocks.items()
            if (said := msgspec.structs.asdict(own))
        },
        max_connections=settings.max_connections,
        ca_file=settings.ca_file,
        trace_context=settings.zone is Zone.PREMISES if settings.trace_context is None else settings.trace_context,
    )
