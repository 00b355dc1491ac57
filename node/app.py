"""The only place that builds parts and hands them down: settings in, a running node out."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from node.api.admin import AdminParts, GuardedAdmin, build_admin
from node.api.app import build_app
from node.api.auth import Keyring
from node.api.completions import Parts
from node.api.dashboard import DashboardParts, Viewers, dashboard_routes, page_files
from node.api.door import Door
from node.api.operator import OperatorParts, operator_router
from node.api.rates import RateLimits
from node.api.status import Status
from node.audit.refusals import refusal_row
from node.caller import budget_of, caller_of
from node.cloud.gate import EgressGate
from node.configured_providers import checked_providers, provider_configs, provider_state
from node.dashboard.decisions import DecisionLog
from node.dashboard.reader import Reader, Sources
from node.dashboard.sampler import Sampler
from node.dispatch.accounts import for_nothing
from node.dispatch.conversations import Conversations
from node.dispatch.dispatcher import Dispatcher, ServedModel
from node.dispatch.experience import Experience
from node.dispatch.health import HealthChecks
from node.dispatch.journey import Journey
from node.dispatch.lane import Lane
from node.dispatch.outcome import Ending, Outcome
from node.dispatch.providers import Providers
from node.dispatch.sharing import Sharing
from node.engines import Engines
from node.errors import SettingsError, SpillwayError
from node.guard import SocketGuard
from node.key_promises import unkept_promise
from node.key_watch import KeyWatch, check_keys
from node.keys_list import keys_document
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
from node.policies import ChangeablePolicy, hedging_for, policy_for
from node.privacy.checks import check_pins, without_cloud
from node.privacy.content import ContentRules
from node.routing.retry_budget import RetryBudget, RetryLimits
from node.routing.ttft import HIGH_SHARE
from node.served_models import served_models
from node.settings import Settings, is_loopback
from node.spending import SpendingWatch
from node.store.admin_key import admin_key
from node.store.cache import MemoryCache
from node.store.database import Database, StoreUnavailable
from node.store.keys import SqlKeyStore, StoredKey
from node.store.ledger import SqlLedger
from node.store.secret import CACHE_SALT, kept_secret, new_secret
from node.store.totals import Totals
from node.store.usage_reader import UsageReader
from node.store_place import place_for
from node.wall_clock import wall_us
from node.watch.host import HostReader
from node.watch.host_watch import HostWatch
from node.watch.loop_watch import LoopWatch
from node.watch.nvml import NvmlReader
from node.watch.values import free_bytes_for
from node.watch.watch import GpuWatch

if TYPE_CHECKING:
    from node.traces.export import Traces

_log = logging.getLogger("spillway")


class Node:
    """Every part of one running node, by what it is for; what a part needs of a later one it asks for when it runs.

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

        # What is served, and who may serve it.
        self.models = served_models(settings, rename)
        configs = provider_configs(settings, environ)
        check_pins(settings, self.models)
        self.content_rules = ContentRules(settings.privacy.content_rules)

        # The machine, and how short it is.
        self.watch = GpuWatch(NvmlReader(), clock, interval_s=settings.watch.interval_s)
        self.host = HostReader(settings.host.max_rss_bytes)
        self.host_watch = HostWatch(self.host, lambda: self.door.inside)
        self.loop_watch = LoopWatch(clock)

        # The books.
        self.place = place_for(settings, emulated=bool(rename), environ=environ)
        self.database = Database(self.place)
        self.ledger = SqlLedger(self.database, node_budget=lambda: budget_of(self.settings.budget))
        self.spending = SpendingWatch(self.database, wall_us)
        self.usage = UsageReader(self.place)
        self.totals = Totals()

        # The cloud.
        self.gate = EgressGate(configs)
        self.providers = Providers(
            {config.name: provider_state(config, settings.providers[config.name], self.gate) for config in configs},
            random.random,
            may_spend=lambda: self.ledger.available,
        )
        self.health = HealthChecks(
            checked_providers(settings, self.providers, self.models.values()),
            lambda provider, within_s: self.gate.probe(provider, timeout_s=within_s),
            clock=clock,
            random=random.random,
        )

        # The engines, and each model's way to its own.
        self.engines = Engines(
            models=lambda: self.models,
            settings=lambda: self.settings,
            lane=lambda name: self.lanes[name],
            watch=self.watch,
            guard=self.guard,
            environ=environ,
            clock=clock,
            unix_s=time.time,
        )
        self.policies = {name: ChangeablePolicy(policy_for(settings)) for name in self.models}
        self.lanes = {name: self._lane(name) for name in self.models}

        # Who may come in.
        self.keyring = Keyring(
            settings.keys, None, on_loopback=is_loopback(settings.listen.host), secret=new_secret(), now_us=wall_us
        )
        self.key_watch = KeyWatch(SqlKeyStore(self.database, wall_us), self._on_keys)
        self._admin_key = functools.cache(functools.partial(admin_key, self.place.folder, environ))
        self.rates = RateLimits(clock)
        self.door = Door(strain=self.host_watch.strain, max_bytes=lambda: self.settings.api.max_bytes_in_flight)

        # From a request to its outcome.
        self.traces = traces_for(settings, self.guard)
        self.experience = {name: Experience() for name in self.models}
        self.conversations = Conversations(clock)
        self.cache = MemoryCache(
            max_bytes=settings.cache.max_bytes,
            max_entry_bytes=settings.cache.max_entry_bytes,
            ttl_s=settings.cache.ttl_s,
            clock=clock,
        )
        self.dispatcher = Dispatcher(
            served={
                name: ServedModel(model, self.lanes[name], self.engines.retry_after(name))
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

        # What can be seen of it all.
        self.request_metrics = RequestMetrics(self.models)
        self.metrics = self._metrics()
        self.status = self._status()
        self.decisions = DecisionLog(time.time)
        self.sampler = Sampler(Reader(self._sources(), self.decisions), unix_s=time.time)
        self._opened = False

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
            vocabulary_size=self.engines.vocabulary_size,
            clock=time.monotonic,
            report=self._report,
            content_rules=lambda: self.content_rules,
            begin_trace=self.traces.begin if self.traces is not None else None,
        )
        operator = OperatorParts(
            ready=self.status.readiness,
            models=self.status.model_list,
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
            stats=self.status.stats,
            metrics=self.metrics.text,
            usage=self.usage.usage,
            keys=self.keys,
            providers=lambda: self.providers.document(time.monotonic()),
            isolate=lambda provider: self.providers.isolate(provider, time.monotonic()),
            restore=lambda provider: self.providers.restore(provider, time.monotonic()),
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
        self.engines.start()
        self.sampler.start()

    async def stop(self) -> None:
        """Stop the engines, close every cloud connection, stop watching. Leaves no process behind."""
        await self.engines.stop()
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

    async def keys(self) -> dict[str, Any]:
        """The callers' keys, of the settings and of the ledger, without what could be used as one."""
        return keys_document(await self.usage.keys(), self.settings.keys, wall_us())

    def _lane(self, name: str) -> Lane:
        engine = self.engines.get(name)
        return Lane(
            engine=engine,
            policy=self.policies[name],
            cloud_options=lambda failed: self.providers.options_for(
                self.models[name],
                time.monotonic(),
                failed,
                HIGH_SHARE if engine is None else engine.engine.work.stats.cloud_share,
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

    def _metrics(self) -> Metrics:
        return Metrics(
            (
                self.request_metrics,
                EngineMetrics(self.lanes, self.engines.lives()),
                VllmMetrics(self.engines.counts()),
                ProviderMetrics(lambda: self.providers.states, time.monotonic),
                MoneyMetrics(self.ledger, lambda: self.spending.latest, lambda: budget_of(self.settings.budget)),
                GpuMetrics(self.watch.state),
                CacheMetrics(self.cache),
                DoorMetrics(self.door, self.host_watch.strain, lambda: self.guard.refused),
                LoopMetrics(self.loop_watch.pauses),
            )
        )

    def _status(self) -> Status:
        return Status(
            models=lambda: self.models,
            engines=self.engines,
            lanes=self.lanes,
            providers=self.providers,
            totals=self.totals,
            cache=self.cache,
            ledger=self.ledger,
            gpus=self.watch,
            guard=self.guard,
            door=self.door,
            host=self.host_watch,
            loop=self.loop_watch,
            clock=time.monotonic,
        )

    def _sources(self) -> Sources:
        return Sources(
            totals=self.totals,
            lanes=self.lanes,
            engines=self.engines,
            histories=self.engines.histories,
            providers=lambda: self.providers,
            gpus=self.watch.state,
            readiness=self.status.readiness,
            ledger=self.ledger.document,
            strain=self.host_watch.strain,
            inside=lambda: self.door.inside,
            budget=lambda: self.spending.left(budget_of(self.settings.budget)),
            clock=time.monotonic,
            unix_s=time.time,
        )

    def _on_outcome(self, outcome: Outcome) -> None:
        self.totals.add(outcome)
        self.decisions.add(outcome)
        self.request_metrics.add(outcome)
        self.rates.settle(outcome)
        self.experience[outcome.model].learn(outcome)
        if (refusal := refusal_row(outcome, node=self.ledger.node, at_us=wall_us())) is not None:
            self.ledger.audit(refusal)
        self.engines.learn(outcome)

    def _report(self, journey: Journey, ending: Ending, error: SpillwayError | None) -> None:
        """A request that the cache answered, or that read along with another one."""
        outcome = journey.outcome(ending, error, time.monotonic())
        if journey.call.trace is not None:
            journey.call.trace.came_to(outcome)
        self._on_outcome(outcome)
        self.ledger.note(*for_nothing(journey.call, journey.features, outcome))


def traces_for(settings: Settings, guard: SocketGuard) -> Traces | None:
    """What begins and sends traces, None where the settings want none: then OpenTelemetry is not even imported."""
    endpoint = settings.traces.otlp_endpoint
    if endpoint is None:
        return None
    from node.traces.export import Traces

    return Traces(endpoint, sample_share=settings.traces.sample_share, reach=guard.collecting)
