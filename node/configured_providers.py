"""The providers as the settings have them: how each is reached, how it stands at first, whose health is looked after.

A node builds its providers with these, and a reload those that are new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
from collections.abc import Iterable, Mapping

import msgspec

from node.catalogue import Model
from node.cloud.config import AnswerClocks, ProviderConfig
from node.cloud.gate import EgressGate
from node.cloud.provider import CloudProvider
from node.dispatch.health import Checked
from node.dispatch.providers import Providers, ProviderState
from node.dispatch.standing import OPERATOR, Standing
from node.errors import SettingsError
from node.privacy.checks import check_zones
from node.routing.breaker import BreakerLimits
from node.routing.ttft import ProviderTtft
from node.routing.values import Zone
from node.settings import ProviderSettings, Settings


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
