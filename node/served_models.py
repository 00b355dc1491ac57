"""The models that a node serves: the catalogue, reduced to what its settings name and allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from node.catalogue import Model
from node.catalogue_files import default_models_dir, load_catalogue, with_engine_args
from node.errors import SettingsError
from node.local.arguments import is_folder
from node.settings import Settings


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
