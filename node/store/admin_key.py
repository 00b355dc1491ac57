"""The admin API's key: the operator's own, or one that is made once and kept where only the node's user can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from node.errors import SettingsError

ENV: Final = "SPILLWAY_ADMIN_KEY"
FILE: Final = "admin.key"
_LEAST_CHARS: Final = 16


def admin_key(folder: Path, environ: Mapping[str, str]) -> str:
    """`$SPILLWAY_ADMIN_KEY`, else the one kept in `folder`, made if it is not there (256 bits, mode 0600).

    Raises `SettingsError` for one that is not `checked`, or is kept where others can read it, or cannot be kept.
    """
    if given := environ.get(ENV):
        return checked(given, ENV)
    path = folder / FILE
    try:
        with suppress(FileExistsError):
            return _made(path)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}. Set {ENV}, or another store.folder") from error
    return read_admin_key(path)


def read_admin_key(path: Path) -> str:
    """The key that is kept in `path`. Raises `SettingsError` as `admin_key` does."""
    try:
        if path.stat().st_mode & 0o077:
            raise SettingsError(f"{path}: others can read it; run chmod 600, or remove it to have a new one made")
        return checked(path.read_text().strip(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(f"{path}: {reason}. Set {ENV}, or another store.folder") from error


def checked(key: str, where: str) -> str:
    """`key`, found in `where`, if it can be one. Raises `SettingsError`, which does not show it.

    It is sent in a header, and clients show one that they cannot send.
    """
    if len(key) < _LEAST_CHARS or not (key.isascii() and key.isprintable()) or " " in key:
        raise SettingsError(
            f"{where}: an admin key has at least {_LEAST_CHARS} characters, all ASCII, no spaces or line ends"
        )
    return key


def _made(path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError
    key = f"sa-{secrets.token_urlsafe(32)}"
    # Whole or not at all: two nodes may start at once on one folder.
    part = path.with_name(f".{FILE}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # fails where another one was faster
    finally:
        part.unlink()
    return key
