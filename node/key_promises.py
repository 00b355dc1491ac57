"""What a key says and a node with these settings cannot do: told when it is made and when the node starts."""

from __future__ import annotations

from collections.abc import Mapping

from node.caller import Caller
from node.catalogue import Model
from node.routing.values import Residency, Zone
from node.settings import Settings


def unkept_promise(caller: Caller, settings: Settings, models: Mapping[str, Model]) -> str | None:
    """One line that says which of the caller's requests will all be refused, None where none will.

    `models` are those of the catalogue, of which the settings say which are served.
    """
    not_served = sorted((caller.models or frozenset()).difference(settings.models))
    usable = [models[name] for name in settings.models if name in models and caller.may_use(name)]
    is_stuck = (
        caller.residency is Residency.PREMISES and bool(usable) and not any(_stays(each, settings) for each in usable)
    )
    said = []
    if not_served:
        said.append(f"not served here: {', '.join(not_served)} (models: {', '.join(settings.models)})")
    if is_stuck:
        said.append(
            "it is pinned to the premises, where nothing serves it (no engine, no provider with zone: premises): its "
            "requests will be refused"
        )
    return f"key {caller.tenant}: {'; '.join(said)}" if said else None


def _stays(model: Model, settings: Settings) -> bool:
    if model.local is not None and not settings.cloud_only:
        return True
    there = (settings.providers.get(each.provider) for each in model.cloud)
    return any(provider is not None and provider.zone is Zone.PREMISES for provider in there)
