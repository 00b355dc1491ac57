"""``spillway keys``: make, list, rotate and revoke the keys that callers send, whether a node runs or not."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.catalogue_files import default_models_dir, load_catalogue
from node.errors import SettingsError
from node.money import Budget, usd_to_nano
from node.routing.values import Residency
from node.settings import LEAST_PRIORITY, MOST_PRIORITY, Settings
from node.wall_clock import wall_us

if TYPE_CHECKING:
    from node.caller import Caller
    from node.catalogue import Model
    from node.store.keys import KeyStore

_DESCRIPTION = """\
Make, list, rotate and revoke the keys that callers send. A key is shown once, when it is made; the node keeps its
SHA-256. A running node takes every change up within two seconds. As soon as there is a key, nobody is let in without.
"""
_CREATE = """\
Make a key and print it, and nothing else, on standard output. NAME is who calls: budgets, limits, usage and cached
answers are by name. Without options the key may do everything.
"""
_EXAMPLES = """\
examples:
  spillway keys create app --budget-day 5 --requests-per-minute 600
  spillway keys create clinic --residency premises --model qwen3-8b --priority 10
  spillway keys rotate app --grace 1h
"""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_USD: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_MOST: Final = 10**12
_DAYS_MOST: Final = 3650


def add_command(commands: Any, config: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add ``keys`` to the command line; `config` adds the option that names the settings."""
    keys = commands.add_parser(
        "keys",
        help="make, list, rotate and revoke callers' keys",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key, and print it", description=_CREATE)
    create.add_argument("name", metavar="NAME")
    create.add_argument("--residency", metavar="ZONE", help="premises: its requests never leave; any (default): may")
    create.add_argument("--model", action="append", metavar="M", help="a model it may use (repeatable; default: all)")
    for window in ("hour", "day", "month"):
        create.add_argument(
            f"--budget-{window}", metavar="USD", help=f"spending in the cloud per UTC {window}, at most"
        )
    create.add_argument("--requests-per-minute", metavar="N", help="more are answered with 429")
    create.add_argument("--tokens-per-minute", metavar="N", help="prompts and answers together; more get a 429")
    create.add_argument(
        "--priority", metavar="N", help="higher goes first among those who wait (-100 to 100; default 0)"
    )
    create.add_argument("--ttft-budget-ms", metavar="MS", help="time to first token where a request names none")
    listing = actions.add_parser("list", help="every key, without its secret", description="Every key, and its rights.")
    listing.add_argument("--json", action="store_true", help="as JSON")
    rotate = actions.add_parser(
        "rotate",
        help="a new key with the same rights",
        description="Print a new key with the rights of NAME's newest one.",
    )
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument("--grace", default="24h", metavar="TIME", help="how long the old one stays good (default: 24h)")
    revoke = actions.add_parser(
        "revoke", help="end a key now", description="End every key of NAME. A node refuses them within two seconds."
    )
    revoke.add_argument("name", metavar="NAME")
    for each in (create, listing, rotate, revoke):
        config(each)


def run(options: argparse.Namespace, settings: Settings, *, emulated: bool) -> int:
    """Do what `options` say to the database of `settings`. Raises `SettingsError` for every mistake.

    `emulated` says that a node with these settings has the emulator for its cloud, and its own database with it.
    """
    from node.keys_list import moment, write_list
    from node.store.database import Database, StoreUnavailable, data_folder, place_of
    from node.store.keys import KeyRefused, SqlKeyStore

    caller = _caller(options, settings) if options.action == "create" else None
    promise = None if caller is None else _unkept(caller, settings)
    grace_us = _microseconds("--grace", options.grace) if options.action == "rotate" else 0
    place = place_of(data_folder(settings.store.folder, os.environ), settings.store.url, emulated=emulated)
    database = Database(place)
    try:
        database.open()
        store: KeyStore = SqlKeyStore(database, wall_us)
        if options.action == "list":
            write_list(store.all(), settings.keys, wall_us(), as_json=options.json)
        elif options.action == "revoke":
            count = store.revoke(options.name)
            _say(f"{options.name}: {'its key is' if count == 1 else f'its {count} keys are'} no longer good")
        elif caller is not None:
            print(store.create(caller))
            _say(f"{caller.tenant}: this is the only time the key is shown")
            if promise is not None:
                _say(f"warning: {promise}")
        else:
            print(store.rotate(options.name, grace_us))
            ends = f"stays good until {moment(wall_us() + grace_us)}" if grace_us else "is no longer good"
            _say(f"{options.name}: this is the only time the key is shown; the one before {ends}")
        if emulated and options.action != "list":
            _say("note: for the node with the emulated cloud; one with settings or a provider's key has other keys")
    except (StoreUnavailable, KeyRefused) as error:
        raise SettingsError(f"keys: {error}") from error
    finally:
        database.close()
    return 0


def _caller(options: argparse.Namespace, settings: Settings) -> Caller:
    from node.caller import ANONYMOUS, Caller

    name = options.name
    if not _NAME.fullmatch(name) or name == ANONYMOUS:
        raise SettingsError(
            f"keys: {name!r} is no name for a key: up to 64 letters, digits and . _ @ -"
            + (", and anonymous is who calls without one" if name == ANONYMOUS else "")
        )
    if name in {key.name for key in settings.keys}:
        raise SettingsError(f"keys: {name!r} is in the settings already. Take it out there, or choose another name")
    if options.residency not in (None, *Residency):
        raise SettingsError(f"--residency: expected premises or any, got {options.residency!r}")
    ttft_budget_ms = _count("--ttft-budget-ms", options.ttft_budget_ms)
    return Caller(
        tenant=name,
        residency=Residency(options.residency or Residency.ANY),
        models=_models(options.model, settings),
        budget=Budget(
            hour_nano_usd=_nano_usd("--budget-hour", options.budget_hour),
            day_nano_usd=_nano_usd("--budget-day", options.budget_day),
            month_nano_usd=_nano_usd("--budget-month", options.budget_month),
        ),
        requests_per_minute=_count("--requests-per-minute", options.requests_per_minute),
        tokens_per_minute=_count("--tokens-per-minute", options.tokens_per_minute),
        priority=_priority(options.priority),
        ttft_budget_s=None if ttft_budget_ms is None else ttft_budget_ms / 1000,
    )


def _models(named: Sequence[str] | None, settings: Settings) -> frozenset[str] | None:
    if named is None:
        return None
    known = _catalogue(settings)
    for name in named:
        if name not in known:
            raise SettingsError(f"--model: there is no {name!r} in the catalogue; it has {', '.join(sorted(known))}")
    return frozenset(named)


def _unkept(caller: Caller, settings: Settings) -> str | None:
    from node.key_promises import unkept_promise

    if caller.models is None and caller.residency is Residency.ANY:
        return None
    return unkept_promise(caller, settings, _catalogue(settings))


def _catalogue(settings: Settings) -> Mapping[str, Model]:
    return load_catalogue([default_models_dir(), *(Path(folder) for folder in settings.catalogue)]).models


def _count(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= _MOST):
        raise SettingsError(f"{option}: expected a whole number of at least 1, got {text!r}")
    return int(text)


def _priority(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", text) or not LEAST_PRIORITY <= int(text) <= MOST_PRIORITY:
        raise SettingsError(
            f"--priority: expected a whole number from {LEAST_PRIORITY} to {MOST_PRIORITY}, got {text!r}"
        )
    return int(text)


def _nano_usd(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not _USD.fullmatch(text):
        raise SettingsError(f"{option}: expected dollars, such as 2.50, got {text!r}")
    return usd_to_nano(Decimal(text))


def _microseconds(option: str, text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])|0", text)
    seconds = int(match[1] or 0) * _UNITS[match[2] or "s"] if match else None
    if seconds is None or seconds > _DAYS_MOST * _UNITS["d"]:
        raise SettingsError(f"{option}: expected a time such as 30m, 24h or 7d (0: none), got {text!r}")
    return seconds * 1_000_000


def _say(text: str) -> None:
    print(text, file=sys.stderr)
