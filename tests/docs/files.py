"""The files that a page shows, checked by what reads them in a node: settings, catalogue entries, prices."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from node.app import Node
from node.catalogue_files import load_catalogue
from node.settings import load_settings
from tests.docs.pages import REPO, Block

_NAMED = re.compile(r"# (\S+\.ya?ml)\b")
_KEYS = {"HOLYSHEEP_API_KEY": "a", "OPENAI_API_KEY": "b"}


def file_name(block: Block) -> str:
    """Which file a YAML block shows: the one that its first line names, else the settings."""
    match = _NAMED.match(block.text)
    return match[1] if match else "spillway.yaml"


def check_files(shown: Sequence[Block], folder: Path) -> None:
    """Lay a page's YAML blocks down together, and build a node from each of its settings, without starting it.

    A file of the catalogue that ships is shown in part: what a block says is added to it. The folder `mine`
    holds a model. Raises `SettingsError`.
    """
    models = folder / "models"
    (models / "prices").mkdir(parents=True)
    shutil.copytree(REPO / "models" / "demo", models / "mine")
    for block in shown:
        name = file_name(block)
        if name.startswith("models/"):
            shipped = REPO / name
            document = yaml.safe_load(shipped.read_text(encoding="utf-8")) if shipped.is_file() else {}
            (folder / name).write_text(yaml.safe_dump(_merged(document, yaml.safe_load(block.text))))
    load_catalogue([REPO / "models", models])
    for block in shown:
        if not file_name(block).startswith("models/"):
            _check_settings(block, folder)


def _check_settings(block: Block, folder: Path) -> None:
    path = folder / file_name(block)
    # Others may have been shown before: a page may change its mind.
    document: dict[str, Any] = {"catalogue": [str(folder / "models")], "store": {"folder": str(folder / "data")}}
    path.write_text(yaml.safe_dump({**document, **yaml.safe_load(block.text), **document}))
    Node(load_settings(path, _KEYS), environ=_KEYS)


def _merged(document: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for key, value in more.items():
        merged[key] = [*merged.get(key, []), *value] if isinstance(value, list) else value
    return merged
