"""Settings, keys and catalogue read anew while the node runs: checked as a whole first, then exchanged in one go.

A request that has begun keeps what it began with. One that waits in the queue is placed by what is true when its turn
comes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from node.app import Node
from node.catalogue import Model
from node.cloud.config import ProviderConfig
from node.cloud.gate import EgressGate
from node.configured_providers import account_of, checked_providers, provider_configs, provider_state
from node.dispatch.dispatcher import ServedModel
from node.dispatch.providers import ProviderState
from node.dispatch.standing import OPERATOR
from node.errors import SettingsError
from node.key_watch import Reading, check_keys
from node.policies import hedging_for, policy_for
from node.privacy.checks import check_pins, without_cloud
from node.privacy.content import ContentRules
from node.served_models import served_models
from node.settings import Section, Settings
from node.wall_clock import wall_us

_log = logging.getLogger("spillway")

# Bound to at the start: a socket, an engine, a size of something that is full.
_FIXED = ("listen", "admin", "store", "models", "cloud_only", "engine", "cache", "watch", "supervision", "traces")
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a reload puts in place, checked. `fixed` names what was changed and waits for a restart."""

    settings: Settings
    keys: Reading
    models: dict[str, Model]
    providers: list[ProviderConfig]
    gate: EgressGate
    content_rules: ContentRules
    fixed: tuple[str, ...]


class Reloader:
    """Reloads `node` from what `load` reads. `where` names the file in the log, None if there is only the environment.

    `on_reloaded` is called on the event loop after each exchange, with the settings now in force.
    """

    def __init__(
        self, node: Node, load: Callable[[], Settings], where: str | None, on_reloaded: Callable[[Settings], None]
    ) -> None:
        self._node = node
        self._load = load
        self._where = where or "environment"
        self._on_reloaded = on_reloaded
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._closing: set[asyncio.Task[None]] = set()

    def request(self) -> None:
        """Reload soon. To be called on the event loop; asked for during a reload, another one follows."""
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.create_task(self._run(), name="reload")

    async def stop(self) -> None:
        """Reload no more, and close what earlier reloads have left open."""
        tasks = [each for each in (self._task, *self._closing) if each is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reload(self) -> None:
        """Read, check, exchange. What is wrong is one line in the log, and everything stays as it was."""
        try:
            # Off the loop: reading the catalogue and the certificates of all authorities takes tens of milliseconds.
            plan = await asyncio.to_thread(self._plan)
        except SettingsError as error:
            message = error.message if error.message.startswith(self._where) else f"{self._where}: {error.message}"
            _log.error("not reloaded, everything stays as it was: %s", message)
            return
        self._exchange(plan)
        _log.info("reloaded %s", self._where)
        if plan.fixed:
            _log.warning("changed, but only a restart puts it in force: %s", ", ".join(plan.fixed))

    async def _run(self) -> None:
        while True:
            self._again = False
            await self.reload()
            if not self._again:
                return

    def _plan(self) -> Plan:
        """Runs in a thread; changes nothing."""
        node, wanted = self._node, without_cloud(self._load())
        settings = msgspec.structs.replace(wanted, **{name: getattr(node.settings, name) for name in _FIXED})
        fixed = [key for name in _FIXED for key in _changed(name, getattr(node.settings, name), getattr(wanted, name))]
        keys = node.key_watch.read()
        check_keys(settings.listen.host, settings.keys, keys, wall_us())
        models = served_models(settings, node.rename)
        for name, model in models.items():
            running = node.models[name].local
            if model.local != running:
                fixed.append(f"the local part of {name}'s catalogue entry")
                models[name] = replace(model, local=running)
        providers = provider_configs(settings, node.environ)
        check_pins(settings, models)
        return Plan(
            settings=settings,
            keys=keys,
            models=models,
            providers=providers,
            gate=EgressGate(providers),
            content_rules=ContentRules(settings.privacy.content_rules),
            fixed=tuple(fixed),
        )

    def _exchange(self, plan: Plan) -> None:
        """In one turn of the loop, and nothing in it can fail."""
        node = self._node
        old_gate, node.gate = node.gate, plan.gate
        node.settings, node.models = plan.settings, plan.models
        node.key_watch.take_up(plan.keys)
        node.keyring.replace(plan.settings.keys, plan.keys.stored)
        node.content_rules = plan.content_rules
        node.host.max_rss_bytes = plan.settings.host.max_rss_bytes
        for policy in node.policies.values():
            policy.policy = policy_for(plan.settings)
        node.dispatcher.served = {
            name: ServedModel(model, node.lanes[name], node.engines.retry_after(name))
            for name, model in plan.models.items()
        }
        node.dispatcher.hedger.hedging = hedging_for(plan.settings)
        states = {config.name: self._state(config, plan) for config in plan.providers}
        # Those that are configured no more are offered to nobody, but answers under way still report to them.
        node.providers.states = {**node.providers.states, **states}
        node.health.replace(checked_providers(plan.settings, node.providers, plan.models.values()))
        closing = asyncio.create_task(self._close(old_gate), name="close-gate")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._on_reloaded(plan.settings)

    def _state(self, config: ProviderConfig, plan: Plan) -> ProviderState:
        """A provider that is known keeps what was learned of it, and gets a new chance if it had refused us."""
        said = plan.settings.providers[config.name]
        new = provider_state(config, said, plan.gate)
        state = self._node.providers.states.get(config.name)
        if state is None:
            return new
        state.provider, state.weight, state.zone = new.provider, new.weight, new.zone
        state.emulated = new.emulated
        standing, now_s = state.standing, time.monotonic()
        standing.slow_s = said.slow_s
        standing.under(account_of(config))
        if standing.isolated_by is not None:
            if not said.isolated:
                _log.info("%s is tried again (it was left alone: %s)", config.name, standing.isolated_by)
            standing.restore(now_s)
        if said.isolated:
            standing.isolate(OPERATOR, now_s)
        return state

    async def _close(self, gate: EgressGate) -> None:
        """Close a gate once nobody uses it any more, and forget the providers that only it had."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)  # first, too: a request placed just before opens its call just after
                if not gate.in_flight:
                    break
        finally:
            await asyncio.shield(gate.aclose())
        if len(self._closing) == 1:  # this one: no other gate is left that one of them could still report through
            known = self._node.settings.providers
            states = self._node.providers.states
            self._node.providers.states = {name: state for name, state in states.items() if name in known}


def _changed(name: str, old: object, new: object) -> list[str]:
    """The keys under `name` whose values differ, spelled as in the settings."""
    if old == new:
        return []
    if isinstance(old, Section):
        fields = old.__struct_fields__
        return [
            key for field in fields for key in _changed(f"{name}.{field}", getattr(old, field), getattr(new, field))
        ]
    if isinstance(old, dict) and isinstance(new, dict):
        entries = dict.fromkeys((*old, *new))
        return [key for entry in entries for key in _changed(f"{name}.{entry}", old.get(entry), new.get(entry))]
    return [name]
