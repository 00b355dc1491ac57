"""Settings under which something pinned could leave, or could never be served, are refused before anything starts.

What routing, permit and gate would refuse each time is not to be there at all: a mistake in one of them must not find a
door that the settings left open.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

import msgspec

from node.catalogue import Model
from node.cloud.config import ProviderConfig, is_public_address
from node.errors import SettingsError
from node.routing.values import Residency, Zone
from node.settings import BUILT_IN_PROVIDERS, Settings

_log = logging.getLogger("spillway.privacy")
_RESOLVE_WITHIN_S = 2.0

Resolve = Callable[[str], frozenset[str]]


def without_cloud(settings: Settings) -> Settings:
    """`settings`, without its cloud providers if everything is pinned: then no address of theirs is kept anywhere."""
    if settings.privacy.residency is not Residency.PREMISES:
        return settings
    kept = {name: each for name, each in settings.providers.items() if each.zone is Zone.PREMISES}
    if left_out := settings.providers.keys() - kept.keys():
        _log.warning("privacy.residency is premises: not used at all: %s", ", ".join(sorted(left_out)))
    return msgspec.structs.replace(settings, providers=kept)


def check_zones(configs: Iterable[ProviderConfig], resolve: Resolve | None = None) -> None:
    """Raise `SettingsError` for a provider that is said to stand on the premises and does not.

    A name is looked up; one that is not known at the moment passes here, and the gate looks again at each connection.
    """
    cloud: dict[tuple[str, int], str] = {}
    premises: dict[tuple[str, int], str] = {}
    for config in configs:
        at = config.address
        (premises if config.zone is Zone.PREMISES else cloud)[at] = config.name
        if config.zone is not Zone.PREMISES:
            continue
        where = f"providers.{config.name}.zone"
        for known in BUILT_IN_PROVIDERS.values():
            if at[0] == urlsplit(known["base_url"]).hostname:
                raise SettingsError(f"{where}: {at[0]} is in the cloud; what is pinned would leave. Remove the zone")
        for address in sorted((resolve or _addresses)(at[0])):
            if is_public_address(address):
                raise SettingsError(
                    f"{where}: {at[0]} is {address}, a public address; what is pinned would leave. Remove the zone, "
                    "or give an address on the premises"
                )
    for at in premises.keys() & cloud.keys():
        raise SettingsError(
            f"providers.{premises[at]}.zone: {at[0]}:{at[1]} is also providers.{cloud[at]}, which is in the cloud; "
            "what is pinned could leave. Say the same of both"
        )


def check_pins(settings: Settings, models: Mapping[str, Model]) -> None:
    """Raise `SettingsError` for a pin that leaves a model, or a key, nothing that could ever serve it.

    `models` are those served, reduced to the providers that are configured.
    """
    servable = {name for name, model in models.items() if _is_servable_here(model, settings)}
    remedy = "give it an engine, or a provider with `zone: premises`, or take the pin away"
    for index, name in enumerate(settings.privacy.pinned_models):
        if name in models and name not in servable:
            raise SettingsError(
                f"privacy.pinned_models[{index}]: {name!r} may not leave, and nothing on the premises can serve it: "
                f"{remedy}"
            )
    for key in settings.keys:
        if key.residency is Residency.PREMISES and not servable:
            raise SettingsError(
                f"keys.{key.name}.residency: nothing of this key's may leave, and nothing on the premises serves any "
                f"model: {remedy}"
            )


def _is_servable_here(model: Model, settings: Settings) -> bool:
    return model.local is not None or any(
        settings.providers[each.provider].zone is Zone.PREMISES for each in model.cloud
    )


def _addresses(host: str) -> frozenset[str]:
    """What `host` is known as at this moment; nothing, if that is not known before long."""
    found: set[str] = set()

    def look() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.update(str(address[0]).partition("%")[0] for *_, address in answers)

    asking = threading.Thread(target=look, name="resolve", daemon=True)
    asking.start()
    asking.join(_RESOLVE_WITHIN_S)
    return frozenset(found)
