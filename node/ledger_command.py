"""`spillway ledger`: back it up, put it back, move it between SQLite and PostgreSQL."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from node.config_option import add_config
from node.errors import SettingsError
from node.progress import Progress
from node.settings import Settings
from node.store.copying import back_up, copied_bytes, copy_ledger, restore
from node.store.database import FILE, Database, Place, StoreUnavailable, place_of
from node.store.identity import are_running
from node.store_place import beside, place_for


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Registers `ledger`, and returns its parser."""
    parser = commands.add_parser(
        "ledger",
        help="back up, restore or move the ledger",
        description="The database with calls, keys and audit, where the settings say that it is. See "
        "docs/operations.md.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    backup = actions.add_parser("backup", help="copy a SQLite ledger into FILE, also while the node runs")
    backup.add_argument("file", type=Path, metavar="FILE", help="must not be there yet")
    put_back = actions.add_parser("restore", help="put a backup in the ledger's place; the node must be stopped")
    put_back.add_argument("file", type=Path, metavar="FILE", help="what `backup` made")
    copy = actions.add_parser(
        "copy",
        help="copy all of it into another, empty database; the node must be stopped",
        description="Copy every table in one transaction, and compare counts and check sums before it is kept.",
    )
    copy.add_argument("--to", required=True, metavar="WHERE", help="postgresql://USER@HOST/NAME, or a folder")
    for action in (backup, put_back, copy):
        add_config(action, default=argparse.SUPPRESS)
    return parser


def run(options: argparse.Namespace, settings: Settings, *, configured: bool) -> int:
    """Does what the command line says and gives the exit code. Raises `SettingsError`."""
    place = place_for(settings, emulated=not configured and not settings.providers)
    if options.action == "backup":
        with beside(place) as database, _copying("backing up", place.file, options.file):
            back_up(database, options.file)
        print(f"{options.file}: the ledger as it was at this moment")
        return 0
    if are_running(place.folder):
        raise SettingsError(f"a node is running on {place.folder}; stop it first")
    if options.action == "restore":
        return _restore(options.file, place)
    return _copy(place, options.to)


def _restore(backup: Path, place: Place) -> int:
    if place.file is None:
        raise SettingsError("the ledger is in PostgreSQL: restore it with pg_restore or psql, see docs/operations.md")
    with _copying("looking through it, and putting it back", backup, place.file):
        aside = restore(backup, place.file)
    print(f"{place.file}: put back from {backup}" + (f"; what was there is {aside}" if aside else ""))
    print("What was spent after the backup is not in it: spillway usage reconcile tells", file=sys.stderr)
    return 0


def _copy(place: Place, to: str) -> int:
    is_url = "://" in to
    folder = place.folder if is_url else Path(to).expanduser()
    target_place = place_of(folder, to if is_url else None)
    if target_place.file is not None and place.file is not None:
        raise SettingsError("--to: the ledger is a SQLite file already; copy that with `spillway ledger backup`")
    target = Database(target_place)
    try:
        with beside(place) as source, Progress("copying") as progress:
            target.open()
            copied = copy_ledger(source, target, progress)
    except StoreUnavailable as error:
        raise SettingsError(str(error)) from error
    finally:
        target.close()
    print(", ".join(f"{table}: {rows:,} rows" for table, rows in copied.items()))
    where = "$SPILLWAY_DATABASE_URL (or store.url)" if is_url else f"store.folder: {folder} ({FILE}), without store.url"
    print(f"copied and compared. To use it, set {where}, and start the node")
    return 0


def _copying(what: str, source: Path | None, target: Path) -> Progress:
    """How much of a file has been copied; what makes the copy does not tell."""
    total = source.stat().st_size if source is not None and source.exists() else None
    return Progress(what, total=total, unit="B", measure=lambda: copied_bytes(target))
