"""Dashboard: what ten viewers cost the node at 500 requests per second, and what the page costs whoever opens it.

The same load runs with and without viewers, in alternating order; what the feed costs is the difference of the node's
CPU time. The answers come from the cache, which leaves the least work around it: an outcome costs the feed the same
whoever answered. The page is opened in a headless Chromium.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from _harness import emulator, load, options
from _harness.node import start_node
from _harness.process import CannotRun, Service, free_port, settle, usage
from _harness.report import Bar, describe_machine, finish, number, table
from _harness.rounds import abba
from _harness.stats import median, median_difference
from playwright.async_api import Browser, async_playwright

ARMS = ("nobody", "viewers")
VIEWERS = 10
REQUESTS_PER_S = 500
MOST_SHARE = 0.05
MOST_BYTES = 300_000
MOST_PAINT_S = 1.0
_KEY = "bench"
_ASKED = b'{"model":"demo","messages":[{"role":"user","content":"Say hello."}],"temperature":0,"max_tokens":16}'
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Plan:
    """How long is measured: rounds per arm, seconds per window, times the page is opened."""

    rounds: int
    window_s: float
    openings: int


QUICK = Plan(rounds=4, window_s=5, openings=3)
FULL = Plan(rounds=8, window_s=10, openings=7)


@dataclass(frozen=True)
class Cell:
    """One arm in one round. `ticks` are those that all viewers got together."""

    arm: str
    round: int
    window_s: float
    requests: int
    failed: int
    cpu_s: float
    ticks: int

    @property
    def cpu_share(self) -> float:
        """Of one core."""
        return self.cpu_s / self.window_s


@dataclass(frozen=True)
class Opening:
    """One time the page was opened, with nothing of it kept from before."""

    first_paint_s: float
    wire_bytes: int


class Viewer:
    """Reads the feed and counts its ticks."""

    def __init__(self) -> None:
        self.ticks = 0

    async def watch(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /dashboard/feed HTTP/1.1\r\nhost: localhost\r\n\r\n")
        try:
            while data := await reader.read(65536):
                self.ticks += data.count(b"event: tick\n")
        finally:
            writer.close()


async def window(node: Service, viewers: int, window_s: float) -> tuple[load.Run, float, int]:
    """Load for so long with so many viewers: what became of it, the node's CPU seconds, and the ticks."""
    watching = [Viewer() for _ in range(viewers)]
    port = int(node.url.rpartition(":")[2])
    tasks = [asyncio.create_task(viewer.watch(port)) for viewer in watching]
    call = load.Call(f"{node.url}/v1/chat/completions", _ASKED)
    await asyncio.sleep(0.5 if viewers else 0)
    before, before_ticks = usage(node.pid).cpu_s, sum(viewer.ticks for viewer in watching)
    run = await load.open_loop([(n / REQUESTS_PER_S, call) for n in range(round(REQUESTS_PER_S * window_s))])
    cpu_s = usage(node.pid).cpu_s - before
    ticks = sum(viewer.ticks for viewer in watching) - before_ticks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return run, cpu_s, ticks


def measure(node: Service, plan: Plan) -> list[Cell]:
    """Both arms in alternating rounds, after a window of warming up."""
    asyncio.run(window(node, 0, 2))
    settle(node.pid)
    cells = []
    for round_, arm in abba(ARMS, plan.rounds):
        run, cpu_s, ticks = asyncio.run(window(node, VIEWERS if arm == "viewers" else 0, plan.window_s))
        failed = sum(not record.ok for record in run.records)
        cells.append(Cell(arm, round_, run.duration_s, len(run.records), failed, cpu_s, ticks))
        settle(node.pid)
    return cells


async def open_page(browser: Browser, url: str) -> Opening:
    """Open the page in a fresh context and wait until its feed is live."""
    context = await browser.new_context()
    page = await context.new_page()
    session = await context.new_cdp_session(page)
    await session.send("Network.enable")
    sizes: dict[str, int] = {}
    session.on("Network.loadingFinished", lambda said: sizes.update({said["requestId"]: said["encodedDataLength"]}))
    await page.goto(url)
    await page.wait_for_selector("[data-state=live]")
    paint_ms = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    await context.close()
    return Opening(first_paint_s=paint_ms / 1000, wire_bytes=sum(sizes.values()))


async def open_pages(url: str, times: int) -> list[Opening]:
    """Several openings, one after the other. The first one, in which the browser itself warms up, is left out."""
    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        raise CannotRun("there is no Chromium here (Debian, Ubuntu: apt install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = [await open_page(browser, url) for _ in range(times + 1)]
        await browser.close()
    return opened[1:]


@contextmanager
def started(directory: Path) -> Iterator[Service]:
    """A node in front of an emulated cloud."""
    (directory / "cloud").mkdir()
    with emulator.start_emulator([], api_key=_KEY, directory=directory / "cloud") as cloud:
        port = free_port()
        config = f"""listen: {{port: {port}}}
cloud_only: true
providers:
  holysheep: {{base_url: "{cloud.service.url}/v1", api_key_env: BENCH_KEY}}
"""
        with start_node(config, {"BENCH_KEY": _KEY}, directory=directory, port=port) as node:
            yield node


def feed_share(cells: Sequence[Cell]) -> float | None:
    """What the viewers cost, as a share of one core."""
    by_arm = {arm: [cell.cpu_share for cell in cells if cell.arm == arm] for arm in ARMS}
    if not all(by_arm.values()):
        return None
    return median_difference(by_arm["viewers"], by_arm["nobody"])


def bars(cells: Sequence[Cell], openings: Sequence[Opening]) -> list[Bar]:
    """The promises of this bench."""
    watched = [cell for cell in cells if cell.arm == "viewers"]
    ticks = [cell.ticks / VIEWERS / cell.window_s for cell in watched]
    share = feed_share(cells)
    paint_s = median(each.first_paint_s for each in openings)
    return [
        Bar(
            f"one core for {VIEWERS} viewers at {REQUESTS_PER_S} requests per second",
            None if share is None else 100 * share,
            100 * MOST_SHARE,
            "%",
            at_least=False,
        ),
        Bar("ticks per viewer and second", min(ticks, default=None), 0.8, "", at_least=True),
        Bar("requests that failed", sum(cell.failed for cell in cells), 0, "requests", at_least=False),
        Bar("first paint on loopback", paint_s, MOST_PAINT_S, "s", at_least=False),
        Bar(
            "the page over the wire",
            max((each.wire_bytes for each in openings), default=None),
            MOST_BYTES,
            "bytes",
            at_least=False,
        ),
    ]


def summary(cells: Sequence[Cell]) -> str:
    """One line per arm."""
    rows = []
    for arm in ARMS:
        of_arm = [cell for cell in cells if cell.arm == arm]
        share = median(cell.cpu_share for cell in of_arm)
        rate = median(cell.requests / cell.window_s for cell in of_arm)
        rows.append([arm, number(None if share is None else 100 * share, 1), number(rate, 0)])
    return table(["who watches", "% of a core", "req/s"], rows)


def run(arguments: argparse.Namespace) -> int:
    """Starts the node, measures, reports, and gives the exit status."""
    plan = QUICK if arguments.quick else FULL
    machine = describe_machine()
    print(machine)
    with tempfile.TemporaryDirectory(prefix="spillway-bench-") as name, started(Path(name)) as node:
        openings = asyncio.run(open_pages(node.url, plan.openings))
        cells = measure(node, plan)
    print(f"\n{summary(cells)}\n\nmedians of {plan.rounds} alternating rounds of {plan.window_s:g} s\n")
    return finish(
        bars(cells, openings),
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={
            "bench": "dashboard",
            "plan": asdict(plan),
            "cells": [asdict(cell) for cell in cells],
            "openings": [asdict(each) for each in openings],
        },
    )


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    arguments = options.parser("What the dashboard costs the node, and its page whoever opens it.").parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
