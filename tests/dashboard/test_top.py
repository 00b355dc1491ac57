"""`spillway top` in front of a real node and an emulated cloud: the app itself, and the command in a terminal."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from node import cli
from node.dashboard.feed import Hello, event
from node.dashboard.sampler import MOST_VIEWERS
from node.emulator.server import Emulator
from node.top.app import Top
from node.top.client import Client
from node.top.figures import dollars
from node.top.glyphs import UNICODE
from node.top.lines import shown
from node.top.pane import Pane
from node.top.target import Place, Target, named
from tests.dashboard.feed_client import hello, viewing
from tests.dashboard.terminal import Terminal
from tests.dashboard.test_page import scripted_run
from tests.serve.node_process import ADMIN_KEY, NodeProcess, emulated, running, until

KEYS = f"keys: [{{name: alice, sha256: {hashlib.sha256(b'sk-alice').hexdigest()}}}]\n"
WIDE, NARROW = (140, 45), (80, 24)


@dataclass(frozen=True)
class Scripted:
    """A node after a scripted run, and the cloud it used."""

    node: NodeProcess
    cloud: Emulator


@pytest.fixture(scope="module")
async def scripted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scripted]:
    folder = tmp_path_factory.mktemp("scripted")
    async with emulated() as cloud, running(cloud, folder, "budget: {day_usd: 3}") as node:
        await scripted_run(node)

        async def charted() -> bool:
            async with viewing(node.url) as feed:
                history = (await hello(feed)).history
            return sum(point.promises for point in history) == 3 and any(point.unserved_per_s for point in history)

        await until(charted)
        yield Scripted(node, cloud)


def visible(pane: Pane) -> list[str]:
    """The lines that a pane shows, which `Pane.render_line` only gives colours to."""
    return [shown(line).plain.rstrip() for line in pane.lines[pane.first : pane.first + pane.size.height]]


class Watcher:
    """Somebody at the app's screen."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    def text(self) -> str:
        panes = [pane for pane in self.app.query(Pane) if pane.display]
        return "\n".join(line for pane in panes for line in visible(pane))

    def decisions(self) -> list[str]:
        return visible(self.app.query_one("#list", Pane))

    async def filters(self, text: str) -> None:
        await self.pilot.press("slash")
        self.app.query_one(Input).value = text
        await self.pilot.press("enter")

    async def sees(self, *texts: str | Callable[[], bool]) -> None:
        def there() -> bool:
            return all(each() if callable(each) else each in self.text() for each in texts)

        try:
            await until(there, 20)
        except AssertionError as error:
            raise AssertionError(f"{texts} not in:\n{self.text()}") from error


@asynccontextmanager
async def watching(target: str | Target, size: tuple[int, int] = WIDE) -> AsyncIterator[Watcher]:
    found = named(target, None) if isinstance(target, str) else target
    app = Top(Client(lambda: found), UNICODE)
    async with app.run_test(size=size) as pilot:
        yield Watcher(app, pilot)


async def spillway(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The command without a terminal: exit code, what it printed, and what it complained of."""
    code = await asyncio.to_thread(cli.main, ["top", *arguments])
    return code, *capsys.readouterr()


async def test_every_panel_shows_the_numbers_of_a_scripted_run(scripted: Scripted) -> None:
    spent = dollars(scripted.cloud.billed_nano_usd)
    async with watching(scripted.node.url) as reader:
        await reader.sees("live", "1 of 5", "67 %", spent, "of $3.00", lambda: len(reader.decisions()) == 6)
        text = reader.text()
        assert re.search(r"cloud +\S? +[\d.]+/s +[\d.]+/s", text), text
        assert re.search(r"measured +- +-", text), "no engine: not known, and not 0"
        assert re.search(r"all, p95 .* \d+ ms +\d+ ms", text)
        assert "demo  no engine here  queue 0" in text
        assert "no GPU" in text
        assert re.search(rf"holysheep +breaker closed +0 +\d+ ms .*{re.escape(spent)}", text), text
        assert "$3.00 left of $3.00" in text
        newest = reader.decisions()[0]
        assert re.search(r"…\w{6} demo +nobody +refused: It may not leave", newest), newest
        assert sum(bool(re.search(r"\d+!/1 ", line)) for line in reader.decisions()) == 1
        assert sum("The same question was answered before." in line for line in reader.decisions()) == 1
        assert sum("The model has no engine here." in line for line in reader.decisions()) == 4
        for key, wanted in (("2", "no engine here"), ("3", "left of $3.00"), ("4", "cache"), ("question_mark", "Keys")):
            await reader.pilot.press(key)
            await reader.sees(wanted)
        await reader.pilot.press("q")
    assert reader.app.return_code == 0


async def test_narrow_terminal_shows_the_same_and_a_tiny_one_says_what_it_needs(scripted: Scripted) -> None:
    async with watching(scripted.node.url, NARROW) as reader:
        await reader.sees("live", "67 %", "holysheep", "no engine here", "cloud only model")
        await reader.pilot.press("down", "enter")
        await reader.sees("why cache hit. The same question was answered before.", "price $0")
        await reader.pilot.resize_terminal(60, 16)
        await reader.sees("lines more", lambda: len(reader.decisions()) >= 2)
        await reader.pilot.resize_terminal(50, 10)
        await reader.sees("This terminal is 50x10; 60x16 are needed.")
        await reader.pilot.resize_terminal(*NARROW)
        await reader.sees("holysheep")


async def test_filter_asks_the_node_and_says_what_it_does_not_know(scripted: Scripted) -> None:
    async with watching(scripted.node.url) as reader:
        await reader.sees(lambda: len(reader.decisions()) == 6)
        wanted = reader.app.seen.rows[3].request_id
        await reader.pilot.press("w", "w")
        await reader.sees("who=cache: 1 of the last 6", lambda: len(reader.decisions()) == 1)
        await reader.pilot.press("escape")
        await reader.sees(lambda: len(reader.decisions()) == 6)
        await reader.filters("why=bad")
        await reader.sees("why=bad: choose one of within_budget")
        await reader.pilot.press("escape")
        await reader.filters("who=none why=private")
        await reader.sees("who=none why=private_not_servable: 1 of the last 6", lambda: len(reader.decisions()) == 1)
        await reader.filters(wanted[-10:].upper())
        await reader.sees(": 1 of the last 6", wanted)
        await reader.filters("nothing")
        await reader.sees("No request is like that.")
        await reader.pilot.press("escape", "space", "w", "w")
        await reader.sees("who=cache: 1 as of ", lambda: len(reader.decisions()) == 1)
        assert "of the last" not in reader.text(), "what is held only was looked through"


async def test_it_waits_for_a_node_can_be_held_still_and_survives_a_restart(tmp_path: Path) -> None:
    async with emulated() as cloud:
        node = NodeProcess(cloud, tmp_path)
        node.configure()
        async with watching(node.url) as reader:
            await reader.sees("No node answers at", "Start one here: spillway serve", "again")
            node.start()
            try:
                await node.until_ready()
                await reader.pilot.press("r")
                await reader.sees("live", "No request has ended yet.")
                await reader.pilot.press("space")
                await reader.sees("held at")
                still, at_s = reader.text(), reader.app.seen.at_s or 0.0
                await node.chat(max_tokens=3)
                await until(lambda: reader.app.seen.rows and (reader.app.seen.at_s or 0.0) > at_s + 1)
                assert reader.text() == still
                await reader.pilot.press("space")
                await reader.sees("live", lambda: "holysheep" in reader.decisions()[0])
                await node.chat(max_tokens=3)
                await reader.sees(lambda: len(reader.decisions()) == 2)
                await reader.pilot.press("end")
                chosen = reader.app.seen.rows[1].request_id
                await node.chat(max_tokens=3)
                await reader.sees(
                    lambda: len(reader.decisions()) == 3, f"{chosen}  key"
                )  # though one has come above it
                node.send(signal.SIGTERM)
                await node.ended()
                await reader.sees("gone since", "These figures are of", "holysheep")
                node.start()
                await node.until_ready()
                await reader.pilot.press("r")
                await reader.sees("live", "No request has ended yet.")
            finally:
                node.kill()


async def test_locked_node_says_which_key_it_wants_and_opens_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with emulated() as cloud, running(cloud, tmp_path, KEYS) as node:
        async with watching(node.url) as reader:
            await reader.sees("locked", "they want the node's admin key", "admin.key in the node's data", "--key-file")
            assert "holysheep" not in reader.text()
        guess = tmp_path / "guess.key"
        guess.write_text("not-the-admin-key-at-all\n")
        async with watching(named(node.url, guess)) as reader:
            await reader.sees("does not take the key from", "guess.key")
        both = (Place(url=node.url), Place(url=node.admin_url, key=ADMIN_KEY, key_from="$SPILLWAY_ADMIN_KEY"))
        async with watching(Target(places=both)) as reader:
            await reader.sees("live", node.admin_url.removeprefix("http://"))
        assert (await spillway(capsys, "--once", "--url", node.url))[0] == 1
        monkeypatch.setenv("SPILLWAY_ADMIN_KEY", ADMIN_KEY)
        code, printed, complaint = await spillway(capsys, "--once", "--config", str(node.config))
        assert (code, complaint) == (0, "")
        assert "holysheep" in printed


async def test_one_viewer_too_many_is_told_so_and_gets_in_later(scripted: Scripted) -> None:
    opened = []
    for _ in range(MOST_VIEWERS):
        stream, writer = await asyncio.open_connection("127.0.0.1", scripted.node.port)
        writer.write(b"GET /dashboard/feed HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in await stream.readline()
        opened.append(writer)
    async with watching(scripted.node.url) as reader:
        await reader.sees("no place", "64 are watching already, as many as may.")
        for writer in opened:
            writer.close()
        await reader.sees("live", "holysheep")


@asynccontextmanager
async def somebody(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Somebody else's program on a port: always the same answer. Keeps what it was sent."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", received


async def test_feed_of_another_version_and_a_foreign_program_are_named() -> None:
    feed = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    later = feed + b'event: hello\ndata: {"feed": 99, "node": "7.0.0", "new": []}\n\n'
    async with somebody(later) as (url, _), watching(url) as reader:
        await reader.sees("another version", "The node (7.0.0) speaks version 99 of the feed, and this program")
    page = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi"
    async with somebody(page) as (url, _), watching(url) as reader:
        await reader.sees("answers, but not as a Spillway node")


async def test_key_goes_to_the_admin_port_only_after_the_public_one_wanted_one() -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"
    elsewhere = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"
    async with somebody(refusal) as (public, asked), somebody(elsewhere) as (admin, asked_with_key):
        places = (Place(url=public), Place(url=admin, key=ADMIN_KEY, key_from="a file"))
        async with watching(Target(places=places)) as reader:
            await reader.sees("not as a Spillway node (status 307)")
        assert not any(ADMIN_KEY.encode() in each for each in asked)
        assert any(ADMIN_KEY.encode() in each for each in asked_with_key)


async def test_once_prints_one_look_for_scripts(
    scripted: Scripted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    config = str(scripted.node.config)
    code, printed, complaint = await spillway(capsys, "--once", "--config", config)
    assert (code, complaint) == (0, "")
    numbers = ("1 of 5", "67 %", dollars(scripted.cloud.billed_nano_usd), "cloud only model", "$3.00 left of $3.00")
    assert all(each in printed for each in numbers), printed
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 90
    code, printed, complaint = await spillway(capsys, "--ascii", "--config", config)
    assert code == 0
    assert "holysheep" in printed
    assert printed.isascii()
    assert complaint == "spillway: the output is no terminal: this is one look, as with --once\n"
    code, printed, complaint = await spillway(capsys, "--once", "--json", "--config", config)
    assert msgspec.json.decode(printed, type=Hello).now.totals.requests == 6


def answering(document: Hello) -> bytes:
    """What a node begins its feed with."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event("hello", document)


async def printed_to(output: int, encoding: str, *arguments: str) -> tuple[int, str]:
    """The command with its standard output there: exit code, and what it complained of."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "node.cli", "top", "--once", *arguments),
        stdout=output,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"},
    )
    _, complaint = await process.communicate()
    assert process.returncode is not None
    return process.returncode, complaint.decode()


async def test_once_writes_names_that_the_output_has_no_letters_for(scripted: Scripted, tmp_path: Path) -> None:
    async with viewing(scripted.node.url) as feed:
        first = await hello(feed)
    (model,) = first.now.models
    odd = msgspec.structs.replace(model, name="größe-☃-😀")
    document = msgspec.structs.replace(first, now=msgspec.structs.replace(first.now, models=(odd,)))
    written = tmp_path / "written"
    async with somebody(answering(document)) as (url, _):
        with written.open("wb") as file:
            assert await printed_to(file.fileno(), "latin-1", "--url", url) == (0, "")
        assert "größe-?-?" in written.read_text("latin-1")
        with written.open("wb") as file:
            assert await printed_to(file.fileno(), "ascii", "--json", "--url", url) == (0, "")
        assert written.read_bytes().isascii()
        assert msgspec.json.decode(written.read_bytes(), type=Hello) == document


async def test_once_that_cannot_be_written_ends_with_one_line_or_with_none(scripted: Scripted) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        code, complaint = await printed_to(full, "utf-8", "--url", scripted.node.url)
        assert (code, complaint) == (1, "spillway: the output cannot be written: No space left on device\n")
        assert await printed_to(writer, "utf-8", "--url", scripted.node.url) == (1, "")
    finally:
        os.close(full)
        os.close(writer)


async def test_once_without_a_node_fails_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, complaint = await spillway(capsys, "--once", "--url", "http://127.0.0.1:9")
    assert (code, printed) == (1, "")
    assert complaint.startswith("spillway: No node answers at http://127.0.0.1:9: ")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("leave", ["\x03", signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_terminal_is_given_back_as_it_was(scripted: Scripted, leave: str | signal.Signals) -> None:
    environ = {"NO_COLOR": "1"} if leave == "\x03" else {}
    terminal = Terminal("top", "--config", str(scripted.node.config), environ=environ)
    try:
        await terminal.shows("live", "67 %", "holysheep", "cloud only model")
        assert terminal.settings() != terminal.before
        terminal.leave(leave)
        assert await terminal.ended() == 0
        await until(lambda: b"\x1b[?1049l" in terminal.written and b"\x1b[?25h" in terminal.written)
        assert terminal.settings() == terminal.before
        assert b"Traceback" not in terminal.written
        coloured = re.search(rb"\x1b\[[0-9;]*[349][0-7]m", terminal.written)
        assert (coloured is None) == bool(environ)
    finally:
        terminal.close()
