"""Overhead: one small chat call through the node, LiteLLM and smg to a static upstream, beside the upstream alone.

All arms run in one go and in alternating order (A B C D, D C B A, …); every figure is the median over rounds, and
what is compared is compared within its round. Before that, the OpenAI SDK has checked the answer of each arm.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import openai
from _harness import gateways, load, options, wrk
from _harness.node import start_node
from _harness.process import CannotRun, Service, free_port, program, settle, usage
from _harness.report import Bar, describe_machine, finish, number, table
from _harness.rounds import abba
from _harness.stats import median, median_difference, median_ratio, percentile

ARMS = ("upstream", "node", "smg", "litellm")
CONNECTIONS = (1, 64)
LONGEST_WINDOW_S = 12.0


@dataclass(frozen=True)
class Plan:
    """How long is measured: rounds per arm, seconds per window, seconds of warming up."""

    rounds: int
    window_s: float
    warm_up_s: float


QUICK = Plan(rounds=4, window_s=1, warm_up_s=2)
FULL = Plan(rounds=8, window_s=4, warm_up_s=4)


@dataclass(frozen=True)
class Cell:
    """One arm in one round at one number of connections."""

    arm: str
    connections: int
    round: int
    window: wrk.Window
    cpu_s: float
    rss_bytes: int

    @property
    def cpu_per_request_s(self) -> float | None:
        return self.cpu_s / self.window.requests if self.window.requests else None


def node_config(upstream: Service, port: int, directory: Path) -> str:
    """The node without an engine: the model `bench` is served by one OpenAI-compatible provider, the upstream."""
    prices = directory / "prices"
    prices.mkdir()
    (directory / "bench.yaml").write_text(f"""name: {gateways.MODEL}
summary: answered by a static upstream
cloud:
  - provider: static
    model: {gateways.MODEL}
    context_tokens: 100000
    max_output_tokens: 8192
    capabilities: []
""")
    (prices / "static.yaml").write_text(f"""provider: static
as_of: 2026-01-01
models:
  {gateways.MODEL}: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
""")
    return f"""listen: {{port: {port}}}
models: [{gateways.MODEL}]
cloud_only: true
catalogue: ["{directory}"]
providers:
  static: {{base_url: "{upstream.url}/v1"}}
"""


@contextmanager
def start(arm: str, directory: Path, environments: Path, upstream: Service) -> Iterator[Service]:
    """The server of one arm, ready."""
    if arm == "upstream":
        yield upstream
    elif arm == "litellm":
        with gateways.litellm(directory, environments, upstream) as service:
            yield service
    elif arm == "smg":
        with gateways.smg(directory, environments, upstream) as service:
            yield service
    else:
        port = free_port()
        catalogue = directory / "catalogue"
        catalogue.mkdir()
        config = node_config(upstream, port, catalogue)
        with start_node(config, {}, directory=directory, port=port) as service:
            yield service


def verify(service: Service) -> None:
    """One call by the stock SDK must bring the upstream's text and usage; raises CannotRun otherwise."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="bench", max_retries=0) as client:
        try:
            answer = client.chat.completions.create(
                model=gateways.MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=16
            )
        except openai.OpenAIError as raised:
            raise CannotRun(f"{service.name} does not proxy: {raised}") from raised
    if answer.choices[0].message.content != gateways.TEXT or not answer.usage or answer.usage.total_tokens != 21:
        raise CannotRun(f"{service.name} changed the answer: {answer}")


def post(service: Service, connections: int, duration_s: float) -> wrk.Window:
    """One window of load, by wrk where there is one."""
    url = f"{service.url}/v1/chat/completions"
    if wrk.available():
        return wrk.load(url, gateways.QUESTION, connections=connections, duration_s=duration_s)
    call = load.Call(url, gateways.QUESTION.encode())
    run = asyncio.run(load.closed_loop(lambda _: call, connections=connections, duration_s=duration_s))
    latencies_s = [record.end_s for record in run.records if record.ok]
    return wrk.Window(
        requests=run.completed_inside,
        duration_s=run.duration_s,
        errors=sum(not record.ok for record in run.records),
        p50_s=percentile(latencies_s, 50),
        p99_s=percentile(latencies_s, 99),
        generator_cpu_share=run.generator_cpu_share,
    )


def measure(services: dict[str, Service], plan: Plan) -> list[Cell]:
    """Every arm at every number of connections, in alternating rounds after one window of warming up."""
    windows_s = {}
    for connections in CONNECTIONS:
        for arm, service in services.items():
            p50_s = post(service, connections, plan.warm_up_s).p50_s or LONGEST_WINDOW_S
            settle(service.pid)
            # A window holds at least ten answers per connection, or those cut off at its end would distort it.
            windows_s[arm, connections] = min(max(plan.window_s, 10 * p50_s), LONGEST_WINDOW_S)
    cells = []
    for connections in CONNECTIONS:
        for number_, arm in abba(list(services), plan.rounds):
            service = services[arm]
            before = usage(service.pid)
            window = post(service, connections, windows_s[arm, connections])
            after = usage(service.pid)
            cells.append(Cell(arm, connections, number_, window, after.cpu_s - before.cpu_s, after.rss_bytes))
            settle(service.pid)
    return cells


def series(cells: Sequence[Cell], arm: str, connections: int) -> list[Cell]:
    """The cells of one arm at one number of connections, by round; empty when it was not measured."""
    chosen = [cell for cell in cells if cell.arm == arm and cell.connections == connections]
    return sorted(chosen, key=lambda cell: cell.round)


def added_p50_s(cells: Sequence[Cell], arm: str, connections: int) -> float | None:
    """What the arm adds to the median latency of the upstream alone."""
    ours, alone = series(cells, arm, connections), series(cells, "upstream", connections)
    if not ours or not alone:
        return None
    return median_difference([cell.window.p50_s for cell in ours], [cell.window.p50_s for cell in alone])


def throughput_ratio(cells: Sequence[Cell], arm: str, other: str, connections: int) -> float | None:
    """The arm's requests per second over another's."""
    ours, theirs = series(cells, arm, connections), series(cells, other, connections)
    if not ours or not theirs:
        return None
    return median_ratio([c.window.requests_per_s for c in ours], [c.window.requests_per_s for c in theirs])


def summary(cells: Sequence[Cell], arms: Sequence[str], connections: int) -> str:
    """The table for one number of connections."""
    rows = []
    for arm in arms:
        of_arm = series(cells, arm, connections)
        windows = [cell.window for cell in of_arm]
        rows.append(
            [
                arm,
                number(_scaled(median(window.p50_s for window in windows), 1e3)),
                number(_scaled(median(window.p99_s for window in windows), 1e3)),
                "-" if arm == "upstream" else number(_scaled(added_p50_s(cells, arm, connections), 1e3)),
                number(median(window.requests_per_s for window in windows), 0),
                number(throughput_ratio(cells, arm, "litellm", connections), 1),
                number(_scaled(median(cell.cpu_per_request_s for cell in of_arm), 1e3), 3),
                number(_scaled(max(cell.rss_bytes for cell in of_arm), 2**-20), 0),
                str(sum(window.errors for window in windows)),
            ]
        )
    header = ["arm", "p50 ms", "p99 ms", "added p50 ms", "req/s", "x LiteLLM", "CPU ms/req", "RSS MiB", "errors"]
    return f"{connections} connection{'s' if connections > 1 else ''}\n{table(header, rows)}"


def bars(cells: Sequence[Cell]) -> list[Bar]:
    """The promises of this bench."""
    added_s = added_p50_s(cells, "node", 1)
    return [
        Bar(
            "the node's requests per second over LiteLLM's at 64 connections",
            throughput_ratio(cells, "node", "litellm", 64),
            10,
            "x",
            at_least=True,
        ),
        Bar("the node's added p50 at 1 connection", _scaled(added_s, 1e3), 1.2, "ms", at_least=False),
        Bar(
            "requests of any arm that failed",
            sum(cell.window.errors for cell in cells),
            0,
            "requests",
            at_least=False,
        ),
    ]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def run(arguments: argparse.Namespace) -> int:
    """Starts the arms, measures, reports, and gives the exit status."""
    program("nginx", "install it (Debian: apt-get install nginx-light)")
    arms = [arm for arm in ARMS if arm in arguments.arms]
    plan = QUICK if arguments.quick else FULL
    machine = describe_machine()
    print(machine)
    if not wrk.available():
        print("wrk was not found (Debian: apt-get install wrk): the load comes from Python and limits the fast arms")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-bench-")))
        upstream = stack.enter_context(gateways.static_upstream(directory))
        services = {arm: stack.enter_context(start(arm, directory, arguments.envs, upstream)) for arm in arms}
        for service in services.values():
            verify(service)
        cells = measure(services, plan)
    for connections in CONNECTIONS:
        print(f"\n{summary(cells, arms, connections)}")
    busiest = max(cell.window.generator_cpu_share for cell in cells)
    print(f"\nmedians of {plan.rounds} alternating rounds; the load generator used at most {busiest:.0%} of one core")
    return finish(
        bars(cells),
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={"bench": "overhead", "plan": asdict(plan), "cells": [asdict(cell) for cell in cells]},
    )


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    parser = options.parser("What a call costs on its way through the node, LiteLLM and smg to a static upstream.")
    parser.add_argument(
        "--arms", type=lambda text: text.split(","), default=list(ARMS), metavar="A,B", help=f"of {ARMS}"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.arms) - set(ARMS):
        parser.error(f"unknown arms: {', '.join(sorted(unknown))}")
    os.environ["NO_PROXY"] = f"127.0.0.1,{os.environ.get('NO_PROXY', '')}"  # the SDK would heed a proxy's variables
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
