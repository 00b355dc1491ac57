"""`spillway usage`: what was used and what it cost; and what a provider's statement says of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import msgspec

from node.errors import SettingsError
from node.settings import Settings
from node.store.moments import since_us, until_us
from node.store.usage import Part, Question, Report, read_usage
from node.store.usage_text import as_csv, as_document, as_table
from node.store_place import beside, place_for

_EXAMPLES = """\
examples:
  spillway usage                              all there is, in one line
  spillway usage --by day --since 7d          a line for each of the last days
  spillway usage --by key model --since 2026-11-01 --until 2026-11-30 --csv
  spillway usage reconcile november.csv --provider holysheep

Days are UTC, and `--until DAY` includes that day. What the columns count: docs/operations.md."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Registers `usage`, and returns its parser."""
    parser = commands.add_parser(
        "usage",
        help="what was used, what it cost, what was saved",
        description="Calls, tokens and money from the ledger: what was spent, and what the same work would have cost "
        "all in the cloud and at list prices.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--by", nargs="+", action="extend", choices=list(Part), default=[], metavar="PART", help=", ".join(Part)
    )
    add_period(parser)
    parser.add_argument("--key", metavar="NAME", help="one caller only")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_const", const=as_csv, dest="form", help="as CSV")
    form.add_argument("--json", action="store_const", const=_as_json, dest="form", help="as JSON")
    parser.set_defaults(form=as_table, action=None)
    return parser


def add_period(parser: argparse.ArgumentParser) -> None:
    """The two options that say from when to when."""
    parser.add_argument("--since", metavar="WHEN", help="a day, a UTC time, or how long ago: 2026-11-01, 24h, 7d")
    parser.add_argument("--until", metavar="WHEN", help="the same; a day alone is included")


def period(options: argparse.Namespace) -> tuple[int | None, int | None]:
    """What `add_period` took, as UTC microseconds."""
    now_us = time.time_ns() // 1000
    since = None if options.since is None else since_us(options.since, now_us)
    until = None if options.until is None else until_us(options.until, now_us)
    if since is not None and until is not None and since >= until:
        raise SettingsError(f"--since {options.since}: is not before --until {options.until}")
    return since, until


def run(options: argparse.Namespace, settings: Settings, *, configured: bool) -> int:
    """Does what the command line says and gives the exit code. Raises `SpillwayError`."""
    since, until = period(options)
    by = tuple(dict.fromkeys(Part(part) for part in options.by))
    question = Question(by=by, since_us=since, until_us=until, caller=options.key)
    with (
        beside(place_for(settings, emulated=not configured and not settings.providers)) as database,
        database.reading() as connection,
    ):
        report = read_usage(connection, question)
    form: Callable[[Report], str] = options.form
    print(form(report).rstrip("\n"))
    return 0


def _as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(as_document(report)), indent=2).decode()
