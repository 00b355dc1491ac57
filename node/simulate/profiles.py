"""Engine profiles as JSON files: those that ship (`models/profiles/NAME.json`), calibrated ones, and your own."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from node.catalogue_files import default_models_dir
from node.errors import SettingsError
from node.routing.profile import EngineProfile, StepModel

_Text = Annotated[str, Meta(min_length=1, max_length=4000)]
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Count = Annotated[int, Meta(gt=0, le=10**12)]
_Base = Annotated[float, Meta(gt=0, le=3600)]
_Seconds = Annotated[float, Meta(ge=0, le=3600)]
_Ahead = Annotated[int, Meta(ge=0, le=1)]


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what files may say: unknown keys are refused."""


class _Step(_Entry, frozen=True, kw_only=True, omit_defaults=True):
    base_s: _Base
    per_decode_s: _Seconds
    per_prefill_token_s: _Seconds
    per_kv_token_s: _Seconds = 0.0
    per_prefill_pair_s: _Seconds = 0.0


class _Profile(_Entry, frozen=True, kw_only=True, omit_defaults=True):
    name: _Name
    source: _Text
    step: _Step
    max_sequences: _Count
    max_batched_tokens: _Count
    kv_tokens: _Count
    context_tokens: _Count
    steps_ahead: _Ahead = 0


_SHAPE = re.compile(r"(?P<said>.*?)(?: - at `\$\.?(?P<key>[^`]*)`)?", re.DOTALL)


def profiles_dir() -> Path:
    """The folder of the profiles that ship with the node."""
    return default_models_dir() / "profiles"


def shipped_profiles() -> list[str]:
    """The names of the profiles that ship with the node, sorted."""
    return sorted(path.stem for path in profiles_dir().glob("*.json"))


def find_profile(name: str) -> EngineProfile:
    """The profile that ships under `name`, or that in the file `name` (with `.json` or a folder in it).

    Raises `SettingsError` naming the known ones, or file, key and reason.
    """
    if name.endswith(".json") or "/" in name or os.sep in name:
        return read_profile(Path(name))
    known = shipped_profiles()
    if name not in known:
        raise SettingsError(f"profile {name!r}: not known; there are {', '.join(known)}, or give a file (NAME.json)")
    return read_profile(profiles_dir() / f"{name}.json")


def read_profile(path: Path) -> EngineProfile:
    """The profile in `path`. Raises `SettingsError` reading "FILE: KEY: reason"."""
    try:
        form = msgspec.json.decode(path.read_bytes(), type=_Profile)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        found = _SHAPE.fullmatch(str(error))
        assert found is not None
        key = f"{found['key']}: " if found["key"] else ""
        raise SettingsError(f"{path}: {key}{found['said']}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not JSON: {' '.join(str(error).split())}") from error
    if form.context_tokens > form.kv_tokens:
        raise SettingsError(f"{path}: context_tokens: more than the {form.kv_tokens} tokens the KV cache holds")
    step = StepModel(
        base_s=form.step.base_s,
        per_decode_s=form.step.per_decode_s,
        per_prefill_token_s=form.step.per_prefill_token_s,
        per_kv_token_s=form.step.per_kv_token_s,
        per_prefill_pair_s=form.step.per_prefill_pair_s,
    )
    return EngineProfile(
        name=form.name,
        source=form.source,
        step=step,
        max_sequences=form.max_sequences,
        max_batched_tokens=form.max_batched_tokens,
        kv_tokens=form.kv_tokens,
        context_tokens=form.context_tokens,
        steps_ahead=form.steps_ahead,
    )


def write_profile(path: Path, profile: EngineProfile) -> None:
    """Writes `profile` to `path`, whole or not at all; `read_profile` reads the same back.

    Raises `SettingsError` for a file that cannot be written.
    """
    step = _Step(
        base_s=profile.step.base_s,
        per_decode_s=profile.step.per_decode_s,
        per_prefill_token_s=profile.step.per_prefill_token_s,
        per_kv_token_s=profile.step.per_kv_token_s,
        per_prefill_pair_s=profile.step.per_prefill_pair_s,
    )
    form = _Profile(
        name=profile.name,
        source=profile.source,
        step=step,
        max_sequences=profile.max_sequences,
        max_batched_tokens=profile.max_batched_tokens,
        kv_tokens=profile.kv_tokens,
        context_tokens=profile.context_tokens,
        steps_ahead=profile.steps_ahead,
    )
    write_whole(path, msgspec.json.format(msgspec.json.encode(form), indent=2) + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Puts `content` into `path`, which appears whole or not at all; an existing file is replaced.

    Raises `SettingsError` where it cannot be written, or something other than a file is in its place.
    """
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        if path.exists() and not path.is_file():
            raise SettingsError(f"{path}: cannot be written: not a file")
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror or error}") from error
