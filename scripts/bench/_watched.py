"""Watched: what metrics, the dashboard's feed and traces cost the node per call.

Four arms, the overhead bench's call through each to the same static upstream, in alternating order: a node without
metrics and feed (`_watched_bare.py`), one as it comes, the same while Prometheus scrapes it once a second and somebody
has the dashboard open, and one that sends traces to a collector that takes them all. CPU per request is compared, not
requests per second: it says what watching takes wherever the bottleneck is. On a virtual machine one window differs
from the next by a fifth, so there are many short ones; each is laid beside the bare node's of the same round, and what
their mean may be off by (a standard error) stands beside it. The bar is 3 % for metrics and feed.
"""

import argparse
import math
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from _harness import gateways, options, wrk
from _harness.node import start_node
from _harness.process import CannotRun, Service, free_port, own_cpu_s, program, settle
from _harness.report import Bar, describe_machine, finish, number, table
from _harness.rounds import abba
from _harness.stats import median
from _overhead import node_config

ARMS = ("bare", "plain", "watched", "traced")
BARE = Path(__file__).with_name("_watched_bare.py")
CONNECTIONS = 32
SCRAPE_EVERY_S = 1.0
_WINDOW_S, _WARM_S = 1.0, 5.0


@dataclass(frozen=True)
class Cell:
    """One arm in one round."""

    arm: str
    round: int
    window: wrk.Window
    cpu_s: float

    @property
    def cpu_per_request_s(self) -> float:
        return self.cpu_s / self.window.requests


class Watchers:
    """Prometheus, as it were, and somebody with the dashboard open; what they have seen is counted."""

    def __init__(self, node: Service) -> None:
        self._node = node
        self._over = threading.Event()
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.scrapes = self.ticks = 0

    def scrape(self) -> None:
        """Ask for the metrics once a second."""
        while not self._over.wait(SCRAPE_EVERY_S):
            with self._opener.open(f"{self._node.url}/metrics", timeout=10) as answer:
                self.scrapes += b"spillway_requests" in answer.read()

    def view(self) -> None:
        """Read the feed as it comes."""
        with self._opener.open(f"{self._node.url}/dashboard/feed", timeout=10) as feed:
            while not self._over.is_set() and (line := feed.readline()):
                self.ticks += line.startswith(b"event: tick")

    def end(self) -> None:
        """Watch no more."""
        self._over.set()


@contextmanager
def watched(node: Service) -> Iterator[None]:
    """Has the node watched meanwhile. Raises CannotRun where nothing came of it: that would measure nothing."""
    watchers = Watchers(node)
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(watchers.scrape), pool.submit(watchers.view)]
        try:
            yield
        finally:
            watchers.end()
    for task in tasks:
        if (error := task.exception()) is not None:
            raise CannotRun(f"the node could not be watched: {error}") from error
    if not watchers.scrapes or not watchers.ticks:
        raise CannotRun(f"only {watchers.scrapes} scrapes and {watchers.ticks} ticks of the feed came")


@contextmanager
def node(directory: Path, upstream: Service, more: str = "", program: Sequence[str] | None = None) -> Iterator[Service]:
    """A node in front of the upstream; `more` is YAML for its settings, `program` stands in for `spillway`."""
    port, catalogue = free_port(), directory / "catalogue"
    catalogue.mkdir(parents=True)
    config = node_config(upstream, port, catalogue) + more
    with start_node(config, {}, directory=directory, port=port, program=program) as service:
        yield service


def measure(services: dict[str, Service], rounds: int, window_s: float) -> list[Cell]:
    """Every arm once per round, after some seconds of warming up each."""

    def post(service: Service, duration_s: float) -> wrk.Window:
        url = f"{service.url}/v1/chat/completions"
        return wrk.load(url, gateways.QUESTION, connections=CONNECTIONS, duration_s=duration_s)

    for service in services.values():
        post(service, _WARM_S)
        settle(service.pid)
    cells = []
    for number_, arm in abba(ARMS, rounds):
        service = services[arm]
        before_s = own_cpu_s(service.pid)
        window = post(service, window_s)
        settle(service.pid)
        cells.append(Cell(arm, number_, window, own_cpu_s(service.pid) - before_s))
    return cells


@dataclass(frozen=True)
class More:
    """How much more one arm takes than another, as shares of that: the mean over rounds, and its standard error."""

    share: float
    error: float


def more_than(arm: Sequence[float], other: Sequence[float]) -> More:
    """By the logarithms of the ratios, round by round: one window that was held up counts the same in either arm."""
    ratios = [math.log(one / beside) for one, beside in zip(arm, other, strict=True)]
    return More(math.exp(fmean(ratios)) - 1.0, stdev(ratios) / math.sqrt(len(ratios)))


def run(arguments: argparse.Namespace) -> int:
    """Starts the nodes, measures, reports, and gives the exit status."""
    program("nginx", "install it (Debian: apt-get install nginx-light)")
    program("wrk", "install it (Debian: apt-get install wrk)")
    rounds = 30 if arguments.quick else 80
    machine = describe_machine()
    print(machine)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-bench-")))
        upstream = stack.enter_context(gateways.static_upstream(directory))
        bare = stack.enter_context(node(directory / "bare", upstream, program=[sys.executable, str(BARE)]))
        plain = stack.enter_context(node(directory / "plain", upstream))
        seen = stack.enter_context(node(directory / "watched", upstream))
        traces = f'traces: {{otlp_endpoint: "{upstream.url}"}}\n'
        traced = stack.enter_context(node(directory / "traced", upstream, traces))
        stack.enter_context(watched(seen))
        cells = measure({"bare": bare, "plain": plain, "watched": seen, "traced": traced}, rounds, _WINDOW_S)
    by_arm = {arm: [cell.cpu_per_request_s for cell in cells if cell.arm == arm] for arm in ARMS}
    more = {arm: more_than(by_arm[arm], by_arm["bare"]) for arm in ARMS}
    rows = [
        (
            arm,
            number((median(by_arm[arm]) or 0.0) * 1e6, 0),
            f"{more[arm].share:+.1%} ± {more[arm].error:.1%}",
            number(median([cell.window.requests_per_s for cell in cells if cell.arm == arm]), 0),
        )
        for arm in ARMS
    ]
    print(table(("arm", "CPU per request (us)", "more than bare", "req/s"), rows))
    return finish(
        [
            Bar(
                "metrics, scraped, and the feed, read",
                more["watched"].share * 100,
                3,
                "% more CPU per request",
                at_least=False,
            )
        ],
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={"bench": "watched", "cells": [asdict(cell) for cell in cells]},
    )


def main() -> int:
    """Reads the options; 0 done, 1 the bar was missed (with --check), 2 the bench cannot run here."""
    arguments = options.parser(
        "What watching the node costs it: metrics and the dashboard's feed, and traces."
    ).parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
