"""`spillway usage`: what was used and what it cost; and what a provider's statement says of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from node.config_option import add_config
from node.errors import SettingsError
from node.progress import Progress
from node.settings import Settings
from node.store.moments import since_us, until_us
from node.store.reconcile import LONGEST_US, SLACK_US, our_calls, reconcile, write
from node.store.reconcile_text import differences_csv, differences_text, has_differences
from node.store.statement import Field, read_statement
from node.store.usage import Part, Question, Report, read_usage
from node.store.usage_text import as_csv, as_document, as_table
from node.store_place import beside, place_for
from node.wall_clock import wall_us

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
        # argparse's own would show ACTION as something that has to be there.
        usage="spillway usage [OPTION ...]\n       spillway usage reconcile [OPTION ...] --provider NAME STATEMENT",
        help="what was used, what it cost, what was saved",
        description="Calls, tokens and money from the ledger: what was spent, and what the same work would have cost "
        "all in the cloud and at list prices.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--by",
        nargs="+",
        action="extend",
        choices=[part.value for part in Part],
        default=[],
        metavar="PART",
        help=", ".join(Part),
    )
    add_period(parser)
    parser.add_argument("--key", metavar="NAME", help="one caller only")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_const", const="csv", dest="form", help="as CSV")
    form.add_argument("--json", action="store_const", const="json", dest="form", help="as JSON")
    parser.set_defaults(form="table", action=None)
    _add_reconcile(parser.add_subparsers(dest="action", metavar="ACTION", prog="spillway usage"))
    return parser


def _add_reconcile(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "reconcile",
        help="lay a provider's statement beside the ledger",
        description="Compare a provider's statement (CSV, a row per call) with the ledger, row by row. Exit code 0 "
        "where nothing differs, 1 where anything does, 2 where they could not be compared. What is assumed of the "
        "columns, and how calls are found without an id: docs/operations.md.",
    )
    parser.add_argument("statement", type=Path, metavar="STATEMENT", help="the CSV file")
    parser.add_argument("--provider", required=True, metavar="NAME", help="whose it is, as in the settings")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help=f"the column that holds a field ({', '.join(Field)}), where it is not found by itself (repeatable)",
    )
    parser.add_argument(
        "--slack-s",
        type=float,
        default=SLACK_US / 1e6,
        metavar="S",
        help="how far the provider's clock may be off (default: %(default)g)",
    )
    parser.add_argument("--write", action="store_true", help="keep what was billed, and settle orphans at it")
    parser.add_argument(
        "--csv",
        action="store_const",
        const="csv",
        dest="form",
        default=argparse.SUPPRESS,
        help="all differences as CSV",
    )
    # Without defaults of their own: not to undo what was given before the word `reconcile`.
    add_period(parser, default=argparse.SUPPRESS)
    add_config(parser, default=argparse.SUPPRESS)
    parser.set_defaults(trouble=2)


def add_period(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The two options that say from when to when."""
    parser.add_argument(
        "--since", default=default, metavar="WHEN", help="a day, a UTC time, or how long ago: 2026-11-01, 24h, 7d"
    )
    parser.add_argument("--until", default=default, metavar="WHEN", help="the same; a day alone is included")


def period(options: argparse.Namespace) -> tuple[int | None, int | None]:
    """What `add_period` took, as UTC microseconds."""
    now_us = wall_us()
    since = None if options.since is None else since_us(options.since, now_us)
    until = None if options.until is None else until_us(options.until, now_us)
    if since is not None and until is not None and since >= until:
        raise SettingsError(f"--since {options.since}: is not before --until {options.until}")
    return since, until


def run(options: argparse.Namespace, settings: Settings, *, configured: bool) -> int:
    """Does what the command line says and gives the exit code. Raises `SpillwayError`."""
    if options.action == "reconcile":
        return _reconcile(options, settings, configured=configured)
    since, until = period(options)
    by = tuple(dict.fromkeys(Part(part) for part in options.by))
    question = Question(by=by, since_us=since, until_us=until, caller=options.key)
    with (
        beside(place_for(settings, emulated=not configured and not settings.providers)) as database,
        database.reading() as connection,
        Progress("adding up"),
    ):
        report = read_usage(connection, question)
    print(_FORMS[options.form](report).rstrip("\n"))
    return 0


def _reconcile(options: argparse.Namespace, settings: Settings, *, configured: bool) -> int:
    for given, option in ((options.by, "--by"), (options.key, "--key"), (options.form == "json", "--json")):
        if given:
            raise SettingsError(f"{option}: not for `reconcile`")
    with Progress("reading the statement") as progress:
        return _compared(options, settings, progress, configured=configured)


def _compared(options: argparse.Namespace, settings: Settings, progress: Progress, *, configured: bool) -> int:
    items = read_statement(options.statement, _columns(options.column))
    since, until = period(options)
    timed = [(item.at_us, item.within_us) for item in items if item.at_us is not None]
    if timed:
        since = min(at_us for at_us, _ in timed) if since is None else since
        until = max(at_us + within_us for at_us, within_us in timed) + 1 if until is None else until
    if not 0 <= options.slack_s <= 1e6:
        raise SettingsError("--slack-s: expected seconds from 0 on")
    slack_us = round(options.slack_s * 1e6)
    with beside(place_for(settings, emulated=not configured and not settings.providers)) as database:
        progress.now("reading the ledger")
        with database.reading() as connection:
            ours = our_calls(
                connection,
                options.provider,
                None if since is None else since - slack_us - LONGEST_US,
                None if until is None else until + slack_us,
            )
        if not ours:
            raise SettingsError(f"--provider {options.provider}: the ledger has no calls to it in this time")
        progress.now(f"comparing {len(items):,} rows with {len(ours):,} calls")
        found = reconcile(items, ours, since_us=since, until_us=until, slack_us=slack_us)
        form = differences_csv if options.form == "csv" else differences_text
        progress.print(form(found).rstrip("\n"))
        if options.write:
            progress.now("writing")
            with database.writing() as connection:
                billed, settled = write(connection, found)
            progress.print(f"written: {billed:,} billed amounts, {settled:,} orphans settled", sys.stderr)
    return int(has_differences(found))


def _columns(given: list[str]) -> dict[Field, str]:
    columns = {}
    for each in given:
        field, separator, name = each.partition("=")
        if not separator or field not in list(Field):
            raise SettingsError(f"--column {each}: expected FIELD=NAME, where FIELD is one of {', '.join(Field)}")
        columns[Field(field)] = name
    return columns


def _as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(as_document(report)), indent=2).decode()


_FORMS: Final[Mapping[str, Callable[[Report], str]]] = MappingProxyType(
    {"table": as_table, "csv": as_csv, "json": _as_json}
)
