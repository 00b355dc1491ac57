"""The database that the settings name, for commands that run beside a node or without one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from node.errors import SettingsError
from node.settings import Settings
from node.store.database import Database, Place, StoreUnavailable, data_folder, place_of


def place_for(settings: Settings, *, emulated: bool, environ: Mapping[str, str] = os.environ) -> Place:
    """Where a node with these settings keeps its ledger; `emulated`: one that runs on the emulator."""
    return place_of(data_folder(settings.store.folder, environ), settings.store.url, emulated=emulated)


@contextmanager
def beside(place: Place) -> Iterator[Database]:
    """The database there, for as long as the block lasts. What is wrong with it is a `SettingsError`."""
    database = Database(place)
    try:
        database.open_beside()
        yield database
    except StoreUnavailable as error:
        raise SettingsError(str(error)) from error
    finally:
        database.close()
