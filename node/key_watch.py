"""Keys that were made, rotated or revoked while the node runs, taken up within a second or two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from node.background import Background
from node.errors import SettingsError
from node.settings import KeySettings, is_loopback
from node.store.database import StoreUnavailable
from node.store.keys import KeyStore, Mark, StoredKey

_log = logging.getLogger("spillway")

_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the database held when it could last be read, None if it never could; and why it cannot now."""

    stored: tuple[StoredKey, ...] | None = None
    mark: Mark | None = None
    problem: str | None = None


class KeyWatch(Background):
    """Looks once per `interval_s` whether the keys in `store` are others. `on_change` gets them, on the event loop.

    While the database cannot be read, the keys known until then stay good, and those revoked meanwhile with them.
    """

    task_name = "key-watch"

    def __init__(
        self,
        store: KeyStore,
        on_change: Callable[[tuple[StoredKey, ...] | None], None],
        *,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._store = store
        self._on_change = on_change
        self._interval_s = interval_s
        self.latest = Reading()

    def read(self) -> Reading:
        """What the database says now. Blocks, and may be called in any thread; puts nothing in force."""
        latest = self.latest
        try:
            mark = self._store.mark()
            return Reading(latest.stored if mark == latest.mark else self._store.all(), mark)
        except StoreUnavailable as error:
            return Reading(latest.stored, latest.mark, str(error))

    def take_up(self, reading: Reading) -> None:
        """Put it in force, and say in the log what has changed."""
        before, self.latest = self.latest, reading
        if reading.problem is not None and before.problem is None:
            _log.warning("keys cannot be read, and stay as they are: %s", reading.problem)
        if reading.stored != before.stored:
            self._on_change(reading.stored)
            if before.stored is not None:
                _log.info("keys have changed, and are in force")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self.take_up(await asyncio.to_thread(self.read))


def check_keys(host: str, keys: tuple[KeySettings, ...], reading: Reading, now_us: int) -> None:
    """Raise `SettingsError` for a name in settings and database, and where other machines reach a node without keys."""
    good = {each.caller.tenant for each in reading.stored or () if each.is_good(now_us)}
    for key in keys:
        if key.name in good:
            raise SettingsError(
                f"keys: {key.name!r} is in the settings and in the database, which may give it other rights. "
                f"Take it out of the settings, or: spillway keys revoke {key.name}"
            )
    if keys or good or is_loopback(host):
        return
    if reading.problem is not None:
        raise SettingsError(
            f"listen.host: {host} is reachable from other machines, and the keys cannot be read: {reading.problem}"
        )
    raise SettingsError(
        f"listen.host: {host} is reachable from other machines, and there is no key. Make one with `spillway keys "
        "create NAME`, set SPILLWAY_API_KEY (or `keys:` in spillway.yaml), or listen on 127.0.0.1"
    )
