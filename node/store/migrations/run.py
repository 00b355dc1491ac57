"""Bring a database up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from node.progress import Progress

_FOLDER: Final = Path(__file__).parent


class NewerTables(Exception):
    """The database was written by a newer version. The message says what to do."""


def migrate(connection: Connection) -> None:
    """Run what is missing, inside the caller's transaction. Raises `NewerTables` for those of a newer version."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if present is not None and present not in known:
        raise NewerTables(
            f"the database was written by a newer version of Spillway (its tables are at {present}). "
            "Install that one, or put back the backup made before it"
        )
    if present == scripts.get_current_head():
        return
    with (
        Progress("bringing the database's tables up to date"),
        EnvironmentContext(config, scripts, fn=lambda revision, _: scripts._upgrade_revs("head", revision)) as context,
    ):
        context.configure(connection=connection, transactional_ddl=True)
        context.run_migrations()
