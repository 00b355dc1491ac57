"""The keys that `spillway keys` makes: 256 random bits, shown once; what is kept is their SHA-256 and their rights.

A fast hash is the right one here: there is nothing to guess in 256 random bits, and it is computed for every request.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Executable, RowMapping, func, select

from node.caller import Caller
from node.money import Budget
from node.routing.values import Residency
from node.store.database import Database, StoreUnavailable
from node.store.schema import keys

PREFIX: Final = "sk-spw-"
_RANDOM_BYTES: Final = 32
_ID_CHARS: Final = len(PREFIX) + 9  # tells keys apart in lists and logs, and leaves 220 bits unsaid
_REVOKED: Final = 0

Mark = tuple[int, ...]
"""Another one as soon as any key has changed."""


class KeyRefused(Exception):
    """A change that cannot be made. The message says why in one line."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key without its secret. Moments are UTC microseconds since 1970; `expires_us` None: it stays good."""

    id: str
    digest: bytes
    caller: Caller
    created_us: int
    expires_us: int | None

    @property
    def revoked(self) -> bool:
        """Ended at once: it is not good at any moment, so that no clock that goes back brings it to life again."""
        return self.expires_us == _REVOKED

    def is_good(self, now_us: int) -> bool:
        """Whether it lets its caller in."""
        return self.expires_us is None or now_us < self.expires_us


class KeyStore(Protocol):
    """Where keys are kept. Everything blocks, and raises `StoreUnavailable` where it cannot be reached."""

    def create(self, caller: Caller) -> str:
        """A new key for `caller`: the key itself, for the only time. Raises `KeyRefused` while the name has one."""

    def rotate(self, name: str, grace_us: int) -> str:
        """A second key with the rights of the first, which is good for `grace_us` more. Raises `KeyRefused`."""

    def revoke(self, name: str) -> int:
        """End every good key of that name, now; returns how many. Raises `KeyRefused` where there is none."""

    def all(self) -> tuple[StoredKey, ...]:
        """Every key there ever was, by name and age."""

    def mark(self) -> Mark:
        """What tells, cheaply, whether `all()` has changed."""


class SqlKeyStore:
    """Keys in the node's database. `now_us` is the wall clock."""

    def __init__(self, database: Database, now_us: Callable[[], int]) -> None:
        self._database = database
        self._now_us = now_us
        self._keyed = database.place.folder / "keyed"

    def create(self, caller: Caller) -> str:
        """A new key for `caller`."""
        now_us = self._now_us()
        try:
            self._note_that_there_are_keys()
        except OSError as error:
            raise StoreUnavailable(f"{self._keyed}: {error.strerror or error}") from error
        with self._database.writing() as connection:
            if _good(connection, caller.tenant, now_us):
                raise KeyRefused(f"{caller.tenant!r} has a key already. Rotate or revoke that one, or choose a name")
            return _insert(connection, _rights(caller), now_us)

    def rotate(self, name: str, grace_us: int) -> str:
        """A second key with the rights of the newest one; every older one ends with the grace, or earlier."""
        now_us = self._now_us()
        with self._database.writing() as connection:
            good = _good(connection, name, now_us)
            if not good:
                raise KeyRefused(_none_of(connection, name))
            ends_us = now_us + grace_us if grace_us > 0 else _REVOKED
            for row in good:
                if row["expires_us"] is None or ends_us < row["expires_us"]:
                    connection.execute(keys.update().where(keys.c.id == row["id"]).values(expires_us=ends_us))
            kept = {column: row for column, row in good[-1].items() if column not in _OF_ONE_KEY}
            return _insert(connection, kept, now_us)

    def revoke(self, name: str) -> int:
        """End every good key of that name."""
        with self._database.writing() as connection:
            good = _good(connection, name, self._now_us())
            if not good:
                raise KeyRefused(_none_of(connection, name))
            ids = [row["id"] for row in good]
            connection.execute(keys.update().where(keys.c.id.in_(ids)).values(expires_us=_REVOKED))
            return len(good)

    def all(self) -> tuple[StoredKey, ...]:
        """Every key there ever was."""
        stored = tuple(stored_key(row) for row in self._read(select(keys).order_by(keys.c.name, keys.c.created_us)))
        if stored:
            with suppress(OSError):  # made elsewhere, with the same PostgreSQL; tried again the next time
                self._note_that_there_are_keys()
        return stored

    def mark(self) -> Mark:
        """Rows are only added, and `expires_us` is all that changes in one: to a moment, or an earlier one."""
        ends = keys.c.expires_us
        rows = self._read(
            select(
                func.count().label("keys"),
                func.count(ends).label("ended"),
                func.max(keys.c.created_us).label("newest"),
                func.sum(ends // 1_000_000).label("ends"),
            )
        )
        return tuple(int(value or 0) for row in rows for value in row.values())

    def _read(self, query: Executable) -> Sequence[RowMapping]:
        """Nothing where nothing can be read, and no key was ever made as far as this machine knows.

        So a node that never had keys goes on serving this machine while its database is away, and one that had does not
        let everybody in.
        """
        file = self._database.place.file
        if file is not None and not file.exists() and not file.with_suffix(".id").exists():
            return ()  # whoever opens a SQLite file that is not there makes it
        try:
            with self._database.reading() as connection:
                return connection.execute(query).mappings().all()
        except StoreUnavailable:
            if self._keyed.exists():
                raise
            return ()

    def _note_that_there_are_keys(self) -> None:
        self._keyed.touch(mode=0o600)


_OF_ONE_KEY: Final = frozenset({"id", "sha256", "created_us", "expires_us"})


def _good(connection: Connection, name: str, now_us: int) -> list[RowMapping]:
    """The rows of that name that are good now, oldest first."""
    good = (keys.c.expires_us.is_(None)) | (keys.c.expires_us > now_us)
    query = select(keys).where(keys.c.name == name, good).order_by(keys.c.created_us)
    return list(connection.execute(query).mappings())


def _none_of(connection: Connection, name: str) -> str:
    known = connection.scalar(select(func.count()).select_from(keys).where(keys.c.name == name))
    return f"{name!r} has no key that is still good" if known else f"there is no key named {name!r}"


def _insert(connection: Connection, rights: dict[str, Any], now_us: int) -> str:
    while True:
        key = PREFIX + secrets.token_hex(_RANDOM_BYTES)
        key_id = key[:_ID_CHARS]
        if connection.scalar(select(keys.c.id).where(keys.c.id == key_id)) is None:
            break
    newest_us = connection.scalar(select(func.max(keys.c.created_us)))
    connection.execute(
        keys.insert().values(
            **rights,
            id=key_id,
            sha256=hashlib.sha256(key.encode()).hexdigest(),
            created_us=max(now_us, (newest_us or 0) + 1),  # in the order in which they were made, whatever the clock
        )
    )
    return key


def _rights(caller: Caller) -> dict[str, Any]:
    return {
        "name": caller.tenant,
        "residency": caller.residency.value,
        "models": None if caller.models is None else json.dumps(sorted(caller.models)),
        "hour_nano_usd": caller.budget.hour_nano_usd,
        "day_nano_usd": caller.budget.day_nano_usd,
        "month_nano_usd": caller.budget.month_nano_usd,
        "requests_per_minute": caller.requests_per_minute,
        "tokens_per_minute": caller.tokens_per_minute,
        "priority": caller.priority,
        "ttft_budget_ms": None if caller.ttft_budget_s is None else round(caller.ttft_budget_s * 1000),
    }


def stored_key(row: RowMapping) -> StoredKey:
    """The key that a row of the table `keys` holds."""
    models, ttft_budget_ms = row["models"], row["ttft_budget_ms"]
    return StoredKey(
        id=row["id"],
        digest=bytes.fromhex(row["sha256"]),
        caller=Caller(
            tenant=row["name"],
            residency=Residency(row["residency"]),
            models=None if models is None else frozenset(json.loads(models)),
            budget=Budget(
                hour_nano_usd=row["hour_nano_usd"],
                day_nano_usd=row["day_nano_usd"],
                month_nano_usd=row["month_nano_usd"],
            ),
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
            priority=row["priority"],
            ttft_budget_s=None if ttft_budget_ms is None else ttft_budget_ms / 1000,
        ),
        created_us=row["created_us"],
        expires_us=row["expires_us"],
    )
