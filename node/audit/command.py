"""`spillway audit`: check the chain, hand it out, prove that what is pinned stays."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.errors import SettingsError
from node.progress import Progress
from node.settings import Settings
from node.store.audit import Head
from node.store.database import Database, StoreUnavailable, data_folder, place_of
from node.store.schema import AuditEvent
from node.usage_command import add_period, period

_HEAD = re.compile(r"(?P<seq>[0-9]{1,18}):(?P<hash>[0-9a-f]{64})")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add ``audit`` and what it can do; returns those parsers, which all want ``--config``."""
    audit = commands.add_parser(
        "audit",
        help="check the record of what left, and export it",
        description="The audit chain has a row for everything that was let out, and for what was refused to leave. "
        "See docs/privacy.md.",
    )
    actions = audit.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser(
        "verify",
        help="check that no row was changed, taken out or put in",
        description="Walk the whole chain. Prints its head (number and hash of the last row): keep it elsewhere, and "
        "give it to --expect the next time, so that a cut-off end is noticed too. Exit code 0 if the chain is "
        "whole, 1 if it is broken, 2 if it could not be read.",
    )
    verify.add_argument("--expect", type=_head, metavar="SEQ:HASH", help="a head that was kept: it must still be there")
    export = actions.add_parser(
        "export",
        help="write rows as CSV or JSON Lines",
        description="Write the rows of the chain, all or those chosen, in its order.",
    )
    export.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="default: csv")
    add_period(export)
    export.add_argument("--key", metavar="NAME", help="rows of this key only")
    export.add_argument("--provider", metavar="NAME", help="rows about this provider only")
    export.add_argument("--event", choices=[event.value for event in AuditEvent], help="rows that say this only")
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    prove = actions.add_parser(
        "prove",
        help="send canary prompts through every pinned path, and see that none leaves",
        description="Start a node of its own, with the demo model on the real engine, an emulator for its cloud, and "
        "these settings' content rules and routing. Send canaries through every pinned path: calm, cache on, queue "
        "full, budget late, hedging on, engine dead, cloud in error. As root in a network namespace, where each packet "
        "beyond loopback is seen. Takes minutes, and the memory of a demo model. Exit code 0 if nothing "
        "left and it would have been seen, else 1; 2 if it could not be tried.",
    )
    for command in (verify, prove):
        command.set_defaults(trouble=2)
    return [verify, export, prove]


def run(options: argparse.Namespace, settings: Settings, *, emulated: bool) -> int:
    """Do it. `emulated`: the node's cloud is the emulator, which has a ledger of its own. Raises `SettingsError`."""
    if options.action == "prove":
        return _prove(settings)
    from node.audit.chain import verify

    try:
        with _database(settings, emulated=emulated) as database:
            if options.action == "export":
                return _export(options, database)
            with database.reading() as connection, Progress("opening the record") as progress:
                verdict = verify(connection, options.expect, progress)
    except StoreUnavailable as error:
        raise SettingsError(str(error)) from error
    counts = ", ".join(f"{count} {event}" for event, count in sorted(verdict.events.items())) or "no rows yet"
    if verdict.why is not None:
        print(f"BROKEN at row {verdict.broken_at}: {verdict.why}")
        print(f"rows 1 to {verdict.rows} hold ({counts})")
        return 1
    print(f"whole: {verdict.rows} rows ({counts})")
    print(f"head: {verdict.head}")
    return 0


def _export(options: argparse.Namespace, database: Database) -> int:
    from node.audit.chain import Choice, write_csv, write_jsonl

    since, until = period(options)
    choice = Choice(
        since_us=since,
        until_us=until,
        caller=options.key,
        provider=options.provider,
        event=None if options.event is None else AuditEvent(options.event),
    )
    write = write_csv if options.format == "csv" else write_jsonl
    with database.reading() as connection:
        if options.output is None:
            write(connection, choice, sys.stdout)
            return 0
        try:
            with (
                options.output.open("w", encoding="utf-8", newline="") as file,
                Progress("writing", unit="B", measure=lambda: options.output.stat().st_size),
            ):
                count = write(connection, choice, file)
        except OSError as error:
            raise SettingsError(f"--output {options.output}: {error.strerror}") from error
    print(f"{count} rows in {options.output}")
    return 0


def _prove(settings: Settings) -> int:
    from node.audit.isolation import isolate

    isolation = isolate()  # before any thread starts, which would stay outside
    from node.audit.prove import run as prove

    return prove(settings, isolation)


@contextmanager
def _database(settings: Settings, *, emulated: bool) -> Iterator[Database]:
    place = place_of(data_folder(settings.store.folder, os.environ), settings.store.url, emulated=emulated)
    if place.file is not None and not place.file.exists() and not place.file.with_suffix(".id").exists():
        raise SettingsError(f"there is no {place.file}: no node has recorded anything there yet")
    database = Database(place)
    try:
        database.open()
        yield database
    finally:
        database.close()


def _head(text: str) -> Head:
    match = _HEAD.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("expected SEQ:HASH as `spillway audit verify` prints it")
    return Head(int(match["seq"]), match["hash"])
