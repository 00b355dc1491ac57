"""Where `top` looks, and which key goes there.

The node on this machine is found by the settings, as the other commands find it. Its public port is asked first, and
without a key, because a node without keys shows its figures to this machine. Only if that wants a key, the admin port
is asked with the admin key. That one listens on loopback only, so the key does not leave the machine.

A place that is named (`--url`) gets a key only if one is named as well (`--key-file`): what answers there may be
another node, or nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from node.errors import SettingsError
from node.settings import Settings, admin_port, is_loopback
from node.store.admin_key import ENV, FILE, checked, read_admin_key
from node.store.database import data_folder

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_SOMEBODY_ELSE = "If the node runs as another user: sudo -u THAT_USER spillway top."


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One address to ask, with the key it gets and where that came from; None: none."""

    url: str
    key: str | None = field(default=None, repr=False)
    key_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Places to ask in turn until one of them does not want another key. `no_key` says why there is none to try."""

    places: tuple[Place, ...]
    no_key: tuple[str, ...] = ()


def here(settings: Settings, environ: Mapping[str, str], *, admin_only: bool = False) -> Target:
    """The node that these settings start on this machine.

    Raises `SettingsError` where its port cannot be known, and for a key in the environment that no node would take.
    """
    listen = settings.listen
    if listen.port == 0:
        raise SettingsError(
            "listen.port is 0, so the node may be on any port: name it with --url http://127.0.0.1:PORT"
        )
    host = _EVERYWHERE.get(listen.host, listen.host)
    public = Place(url=f"http://{_bracketed(host)}:{listen.port}")
    port = admin_port(settings)
    admin_url = f"http://{_bracketed(settings.admin.host)}:{port}"
    places = () if admin_only else (public,)
    if port == 0:
        return Target(places=places or (public,), no_key=("The admin port is any free one: set admin.port.",))
    if given := environ.get(ENV):
        return Target(places=(*places, Place(url=admin_url, key=checked(given, ENV), key_from=f"${ENV}")))
    path = data_folder(settings.store.folder, environ) / FILE
    try:
        key = read_admin_key(path)
    except SettingsError as error:
        no_key = (f"The key was looked for and not found: {error.message}.", _SOMEBODY_ELSE)
        return Target(places=places or (Place(url=admin_url),), no_key=no_key)
    return Target(places=(*places, Place(url=admin_url, key=key, key_from=str(path))))


def named(url: str, key_file: Path | None) -> Target:
    """The node at `url`. Raises `SettingsError` for what is no address or no key, and for a key that would go over a
    network as plain text."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"--url {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username is not None:
        raise SettingsError(f"--url {url}: expected an address such as http://127.0.0.1:8000")
    _check_sendable(url)
    base = f"{parts.scheme}://{_bracketed(host)}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
    if key_file is None:
        return Target(
            places=(Place(url=base),),
            no_key=("No key is sent to a place named with --url unless --key-file names one.",),
        )
    if parts.scheme == "http" and not is_loopback(host):
        raise SettingsError(
            f"--key-file: the key would go to {host} unencrypted. Use https, or SSH "
            f"(ssh -L 8001:127.0.0.1:8001 {host}) and --url http://127.0.0.1:8001"
        )
    try:
        key = checked(key_file.read_text().strip(), f"--key-file {key_file}")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--key-file {key_file}: {getattr(error, 'strerror', None) or 'not text'}") from error
    return Target(places=(Place(url=base, key=key, key_from=str(key_file)),))


def _check_sendable(url: str) -> None:
    """Whether the HTTP client, too, takes it for an address."""
    try:
        _ = httpx.URL(url).host  # a name that is written `xn--` is decoded only here
    except (httpx.InvalidURL, UnicodeError) as error:
        raise SettingsError(f"--url {url}: {error}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
