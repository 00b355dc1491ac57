"""`scripts/demo`: a synthetic day in two minutes."""

import argparse
import asyncio
import math
import os
import signal
import socket
import sys
import tempfile
import webbrowser
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import aiohttp
import psutil
from _harness.process import CannotRun
from _harness.report import describe_machine, finish

from _demo.books import books_without_the_node, read_books
from _demo.day import FULL_DAY_S, SHORTEST_DAY_S
from _demo.play import Play, Played
from _demo.report import Seen, document, promises, text
from _demo.screen import Screen
from _demo.stage import Stage, stage
from _demo.told import Change
from _demo.viewer import Viewer

_DESCRIPTION = """\
Starts a node of its own with the real engine (the demo model) and two emulated clouds, and plays a synthetic day of
two minutes on it: a calm morning, a burst, the engine killed, the providers away, the budget spent. Watch it on the
dashboard, whose address is printed (and opened, where there is a screen); at the end comes a report. Nothing leaves
this machine, no running node is disturbed, and nothing stays behind."""
_EPILOG = """\
exit codes: 0 all promises were kept (nothing pinned left, the bill is the ledger's, nothing hung), 1 one was not, or
the node broke in the middle of the day, 2 it cannot run here, 130 it was ended early. Ctrl-C ends it at any moment; the
report of what was until then comes all the same, once there is a node."""
_END_AGAIN_S = 0.2
_LOOKS, _LOOK_AGAIN_S = 100, 0.1
_GONE_WITHIN_S = 10.0


async def run(arguments: argparse.Namespace, stop: asyncio.Event) -> int:
    """All of it; the exit status. Raises `CannotRun` when node or engine do not start."""
    machine, screen = describe_machine(), Screen()
    screen.say("A node of its own with the demo model, and two emulated clouds. Nothing leaves this machine.")
    left: list[psutil.Process] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-demo-")))
        screen.status("starting the node")
        made = await _started(stack, stage(folder, arguments.port), stop)
        if made is None:
            screen.say("Ended before there was a node.")
            return 130
        _tell_where(made, screen, open_it=arguments.browser)
        viewer = Viewer()
        following = asyncio.create_task(viewer.follow(made.node.url, made.admin_key))
        play = Play(made, screen, viewer, stop, arguments.seconds, arguments.seed)
        played = await play.run()
        seen = await _seen(made, played, viewer)
        screen.head("The day, as its clients saw it")
        screen.say(f"\n{text(seen)}")
        figures = {
            "demo": document(seen),
            "capacity_per_s": played.capacity_per_s,
            "engine_start_s": played.engine_start_s,
            "budget_usd": None if played.budget_usd is None else f"{played.budget_usd:f}",
        }
        status = finish(promises(seen), check=True, json_path=arguments.json, machine=machine, figures=figures)
        early = seen.ended_early
        if seen.broken is not None:
            print(f"\nThe day broke off: {seen.broken}", file=sys.stderr)
            status = 1
        elif arguments.hold and not early:
            screen.say(f"\nThe node goes on, to look around: {made.dashboard}")
            screen.say(f"To ask something yourself, in its playground for instance: {made.keys['chat']}")
            screen.say("Enter or Ctrl-C ends it.")
            await _until_enter(stop)
        following.cancel()
        screen.status("ending the node, its engine and the clouds")
        left = made.processes()
        await asyncio.to_thread(stack.close)
    _, alive = await asyncio.to_thread(psutil.wait_procs, left, _GONE_WITHIN_S)
    screen.say("Everything that was started has ended." if not alive else f"Still there: {alive}")
    return status or (1 if alive else 130 if early else 0)


async def _started(stack: ExitStack, making: AbstractContextManager[Stage], stop: asyncio.Event) -> Stage | None:
    """What `making` makes, for the stack to end; None when it was enough before that. Raises `CannotRun`."""
    # In a thread, so that Ctrl-C finds somebody who listens.
    starting = asyncio.create_task(asyncio.to_thread(stack.enter_context, making))
    ended = asyncio.create_task(stop.wait())
    await asyncio.wait([starting, ended], return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    # The thread waits for one child after the other to answer: it hears that one has ended, and tidies up.
    while not starting.done():
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        await asyncio.wait([starting], timeout=_END_AGAIN_S)
    if not stop.is_set():
        return await starting
    with suppress(CannotRun):
        await starting
    return None


def _tell_where(made: Stage, screen: Screen, *, open_it: bool | None) -> None:
    port = made.node.url.rpartition(":")[2]
    screen.say(f"\n  dashboard: {made.dashboard}")
    screen.say(f"  in a terminal: {made.top}")
    if os.environ.get("SSH_CONNECTION"):
        screen.say(
            f"  from your own machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then the same address"
        )
    screen.say()
    on_a_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    wanted = on_a_screen and not os.environ.get("SSH_CONNECTION") if open_it is None else open_it
    if wanted:
        with suppress(webbrowser.Error):
            webbrowser.open(made.dashboard)


async def _seen(made: Stage, played: Played, viewer: Viewer) -> Seen:
    """What there is to report, once the node is at rest; of a node that is no more, without its books."""
    broken = played.broken
    try:
        async with aiohttp.ClientSession() as session:
            await _at_rest(made, session)
            books = await read_books(made, session, played.began_unix_s)
    except aiohttp.ClientError as error:
        books = books_without_the_node(made)
        broken = broken or made.broken() or f"its books cannot be read: {error}"
    began_s = played.began_unix_s

    def in_the_day(changes: list[Change]) -> list[Change]:
        return [Change(each.at_s - began_s, each.state, each.why) for each in changes]

    return Seen(
        told=sorted(played.told, key=lambda each: each.at_s),
        chapters=played.chapters,
        engine=in_the_day(viewer.engine_changes),
        breakers={name: in_the_day(changes) for name, changes in viewer.breaker_changes.items()},
        books=books,
        lasted_s=played.lasted_s,
        ended_early=played.ended_early and broken is None,
        broken=broken,
    )


async def _at_rest(made: Stage, session: aiohttp.ClientSession) -> None:
    """Until the ledger has no call out any more."""
    for _ in range(_LOOKS):
        if not (await made.admin(session, "/admin/usage"))["total"]["open"]:
            return
        await asyncio.sleep(_LOOK_AGAIN_S)


async def _until_enter(stop: asyncio.Event) -> None:
    if not sys.stdin.isatty():  # not every kind of standard input can be watched, nor means anything by its end
        await stop.wait()
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, stop.set)
    await stop.wait()
    loop.remove_reader(sys.stdin)


async def _with_signals(arguments: argparse.Namespace) -> int:
    """Ctrl-C, SIGTERM and a closed terminal say that it is enough; nothing is torn down in the middle of a step."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    return await run(arguments, stop)


def _seconds(text: str) -> float:
    """A length of a day that all its chapters fit in."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_DAY_S <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected {SHORTEST_DAY_S:g} seconds at least, got {text!r}")
    return seconds


def _new_file(text: str) -> Path:
    """A place that a file can be written to: it is told now, and not at the end of the day."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"no file can be written to {text!r}")
    return path


def main() -> int:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, help="where the node listens (default: a free port)")
    add("--browser", action=argparse.BooleanOptionalAction, help="open the page (default: where there is a screen)")
    add("--hold", action=argparse.BooleanOptionalAction, help="keep the node at the end (default: on a terminal)")
    add(
        "--seconds",
        type=_seconds,
        default=FULL_DAY_S,
        help=f"length of the day, {SHORTEST_DAY_S:g} at least (default: %(default)g)",
    )
    add("--json", type=_new_file, metavar="FILE", help="also write the report to FILE")
    add("--seed", type=int, default=1, help="of the traffic")
    arguments = parser.parse_args()
    if arguments.hold is None:
        arguments.hold = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        return asyncio.run(_with_signals(arguments))
    except CannotRun as raised:
        print(f"\n{raised}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
