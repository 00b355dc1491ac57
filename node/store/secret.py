"""Secrets that the node makes for itself, once, and keeps in its database."""

from __future__ import annotations

import secrets as random_secrets
from typing import Final

from sqlalchemy import select

from node.store.database import Database
from node.store.schema import secrets

CACHE_SALT: Final = "cache_salt"
"""Of which each tenant's salt for the engine's prefix cache is made."""
_BYTES: Final = 32


def new_secret() -> bytes:
    """A secret that is kept nowhere."""
    return random_secrets.token_bytes(_BYTES)


def kept_secret(database: Database, name: str) -> bytes:
    """The secret of that name, made now if there is none yet. Raises `StoreUnavailable`."""
    query = select(secrets.c.value).where(secrets.c.name == name)
    with database.reading() as connection:
        value = connection.scalar(query)
    if value is None:
        with database.writing() as connection:
            value = connection.scalar(query)  # another node may have been first
            if value is None:
                value = new_secret().hex()
                connection.execute(secrets.insert().values(name=name, value=value))
    return bytes.fromhex(value)
