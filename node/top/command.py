"""`spillway top`: what the dashboard shows, in a terminal."""

from __future__ import annotations

import argparse
import asyncio
import locale
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from node.settings import Settings

if TYPE_CHECKING:
    from node.top.client import Client
    from node.top.glyphs import Glyphs
    from node.top.target import Target

_EXAMPLES = """\
examples:
  spillway top                                the node on this machine, as the settings have it
  spillway top --once                         one look as plain text, for scripts and `watch`
  spillway top --once --json | jq .now.totals
  ssh -L 8001:127.0.0.1:8001 HOST             then, with the admin key of that node in a file:
  spillway top --url http://127.0.0.1:8001 --key-file host.key

A node without keys shows its figures to this machine. One with keys wants the admin key: $SPILLWAY_ADMIN_KEY, else
admin.key in the data folder. It goes to the admin port on loopback, and nowhere else unless --key-file says so.

Keys: 1-4 views, / filter, w by whom, enter details, space hold, ? all of them, q quit. NO_COLOR is heeded.
Exit code 0 when left with q, Ctrl-C or SIGTERM; with --once 1 if there were no figures to be had, or nowhere to write
them. docs/top.md"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Registers `top`, and returns its parser."""
    parser = commands.add_parser(
        "top",
        help="the dashboard in this terminal",
        description="Watch a running node: who answers how many requests and why each went there, engines, providers\n"
        "and the bill, once a second. It waits for a node that is not there yet, and finds it again after a restart.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", metavar="URL", help="the node's port or its admin port (default: as the settings say)")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the admin key to send to --url")
    parser.add_argument(
        "--admin",
        action="store_true",
        help="ask this machine's admin port only; it answers to the end of a shutdown",
    )
    parser.add_argument("--once", action="store_true", help="print one look as plain text, and end")
    parser.add_argument("--json", action="store_true", help="with --once: the feed's first document instead")
    parser.add_argument("--ascii", action="store_true", help="draw without block characters (default: if need be)")
    return parser


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Show it until the reader leaves, or once. Returns the exit code. Raises `SettingsError`."""
    from node.errors import SettingsError
    from node.top.client import Client
    from node.top.glyphs import ASCII, UNICODE

    if options.key_file is not None and options.url is None:
        raise SettingsError("--key-file: say with --url where the key goes")
    if options.admin and options.url is not None:
        raise SettingsError("--admin is this machine's own admin port: leave --url out, or --admin")
    if options.json and not options.once:
        raise SettingsError("--json: goes with --once")
    client = Client(_finder(options, settings))
    glyphs = ASCII if options.ascii or not _writes_blocks() else UNICODE
    if options.once:
        return asyncio.run(_once(client, glyphs, as_json=options.json))
    if why := _no_screen():
        print(f"spillway: {why}: this is one look, as with --once", file=sys.stderr)
        return asyncio.run(_once(client, glyphs, as_json=False))
    from node.top.app import Top

    app = Top(client, glyphs)
    app.run(mouse=False)  # the mouse stays the terminal's, which selects and copies with it
    return app.return_code or 0


def _finder(options: argparse.Namespace, settings: Settings) -> Callable[[], Target]:
    """Says before each try where to look."""
    from node.top import target

    if options.url is None:
        return lambda: target.here(settings, os.environ, admin_only=options.admin)
    named = target.named(options.url, options.key_file)  # once: the file may be a pipe
    return lambda: named


async def _once(client: Client, glyphs: Glyphs, *, as_json: bool) -> int:
    from node.top.client import CannotRead
    from node.top.once import in_ascii, on_paper

    try:
        hello, document = await client.hello()
    except CannotRead as error:
        advice = f" {' '.join(error.trouble.advice)}" if error.trouble.advice else ""
        print(f"spillway: {error.trouble.said}{advice}", file=sys.stderr)
        return 1
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    return _written(in_ascii(document) if as_json else on_paper(hello, client.place.url, width, glyphs))


def _written(text: str) -> int:
    """Write `text` in whatever encoding the output has. Returns the exit code: a reader that has left is no news."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"spillway: the output cannot be written: {error.strerror}", file=sys.stderr)
        # What is left in the buffer would be written, and fail, once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _no_screen() -> str | None:
    """Why nothing can be drawn here; None where it can."""
    if not sys.stdout.isatty():
        return "the output is no terminal"
    if not sys.stdin.isatty():
        return "the input is no terminal, so there are no keys"
    return "TERM=dumb cannot move the cursor" if os.environ.get("TERM", "dumb") == "dumb" else None


def _writes_blocks() -> bool:
    """Whether what is written arrives as UTF-8, and the terminal is likely to have the characters."""
    encoding = (sys.stdout.encoding or locale.getpreferredencoding(False)).lower().replace("-", "")
    return encoding == "utf8" and os.environ.get("TERM") != "linux"
