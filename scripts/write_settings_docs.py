#!/usr/bin/env python3
"""Write docs/configure.md from the settings types, so that the page cannot drift from the code."""

import inspect
import sys
from pathlib import Path
from typing import Any

import msgspec

from node import settings

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "configure.md"
_INTRO = """# Settings

`spillway.yaml` in the folder you start from, `$SPILLWAY_CONFIG`, or `--config FILE`. Unknown keys are refused by name.
The environment is laid over it: `SPILLWAY_HOST`, `SPILLWAY_PORT`, `SPILLWAY_ADMIN_PORT`, `SPILLWAY_MODELS`
(comma-separated), `SPILLWAY_DATABASE_URL`, `SPILLWAY_API_KEY` (adds one caller key named `default`),
`HOLYSHEEP_API_KEY` (adds HolySheep as a provider). `SPILLWAY_ADMIN_KEY` is the admin API's key.
Written by `scripts/write_settings_docs.py`.
"""
_SECTIONS: tuple[tuple[str, type[settings.Section]], ...] = (
    ("top level", settings.Settings),
    ("listen", settings.Listen),
    ("routing", settings.RoutingSettings),
    ("privacy", settings.PrivacySettings),
    ("privacy.content_rules", settings.ContentRulesSettings),
    ("providers.NAME", settings.ProviderSettings),
    ("providers.NAME.clocks", settings.Clocks),
    ("providers.NAME.model_clocks.MODEL", settings.AnswerClocks),
    ("cache", settings.CacheSettings),
    ("api", settings.ApiSettings),
    ("watch", settings.WatchSettings),
    ("supervision", settings.SupervisionSettings),
    ("host", settings.HostSettings),
    ("traces", settings.TracesSettings),
    ("store", settings.StoreSettings),
    ("budget", settings.BudgetSettings),
    ("admin", settings.AdminSettings),
    ("keys[]", settings.KeySettings),
)


def page() -> str:
    parts = [_INTRO]
    for name, section in _SECTIONS:
        rows = [f"## {name}", "", inspect.cleandoc(section.__doc__ or ""), "", "| key | default |", "|---|---|"]
        rows += [f"| `{field.name}` | {_default(field)} |" for field in msgspec.structs.fields(section)]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _default(field: msgspec.structs.FieldInfo) -> str:
    value: Any = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "required"
    if isinstance(value, settings.Section):
        return "see below"
    return f"`{msgspec.json.encode(value).decode()}`"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if _PAGE.read_text() == page() else "docs/configure.md is stale: run scripts/write_settings_docs.py")
    _PAGE.write_text(page())
