"""Local: the demo model under the node and under vLLM's own OpenAI server, streaming at 64 connections.

Both are started with the very same engine arguments and stay resident; only one is loaded at a time, in alternating
order. CPU is that of the process which holds the API alone: the engine's own processes do the same work in both arms.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from _harness import load, options
from _harness.node import start_node
from _harness.process import CannotRun, Service, free_port, own_cpu_s, running, settle
from _harness.report import Bar, describe_machine, finish, number, table
from _harness.rounds import abba
from _harness.stats import median, median_ratio, percentile

from node.catalogue_files import default_models_dir, load_catalogue
from node.local import arguments as engine_arguments

ARMS = ("node", "vllm")
CONNECTIONS = 64
TOKENS = 64
READY_WITHIN_S = 300
CLIENT_LIMIT = 0.8  # of one core: beyond it, the load generator is what is measured


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds per arm, and requests per round."""

    rounds: int
    requests: int


QUICK = Plan(rounds=4, requests=192)
FULL = Plan(rounds=8, requests=768)


@dataclass(frozen=True)
class Cell:
    """One arm in one round. Times are the client's; `api_cpu_s` is user and system time of the API process."""

    arm: str
    round: int
    requests: int
    failed: int
    first_failure: str | None
    duration_s: float
    api_cpu_s: float
    ttft_p50_s: float | None
    itl_p50_s: float | None
    generator_cpu_share: float

    @property
    def requests_per_s(self) -> float:
        return (self.requests - self.failed) / self.duration_s

    @property
    def cpu_per_request_s(self) -> float | None:
        good = self.requests - self.failed
        return self.api_cpu_s / good if good else None


def call(service: Service, index: int) -> load.Call:
    """Request number `index`: a prompt of its own, and exactly `TOKENS` tokens in answer."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"Question {index}: what is Spillway?"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return load.Call(f"{service.url}/v1/chat/completions", json.dumps(body).encode(), stream=True)


@contextmanager
def start(arm: str, directory: Path) -> Iterator[Service]:
    """The server of one arm with its engine, ready."""
    port = free_port()
    if arm == "node":
        config = f"listen: {{port: {port}}}\nmodels: [demo]\ncache: {{max_bytes: 0}}\n"
        with start_node(config, {}, directory=directory, port=port, ready_within_s=READY_WITHIN_S) as service:
            yield service
        return
    model = load_catalogue([default_models_dir()]).models["demo"].local
    assert model is not None
    cuda = engine_arguments.cuda_available()
    words = engine_arguments.command_line("demo", model, cuda=cuda)
    bare = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory)}
    with running(
        "vLLM's server",
        [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *words),
        ],
        url=f"http://127.0.0.1:{port}",
        ready_path="/health",
        log=directory / "vllm.log",
        env={**bare, **engine_arguments.environment(model, bare)},
        ready_within_s=READY_WITHIN_S,
    ) as service:
        yield service


def failure(record: load.Record) -> str | None:
    """Why an answer does not count: it did not come, or brought another number of tokens. None for a good one."""
    if not record.ok:
        return record.error or f"status {record.status}"
    tokens = (record.usage or {}).get("completion_tokens")
    return None if tokens == TOKENS else f"{tokens} tokens instead of {TOKENS}"


def measure_once(arm: str, service: Service, round_: int, requests: int) -> Cell:
    """One round of one arm; a request that brought another number of tokens counts as failed."""
    before_s = own_cpu_s(service.pid)
    run = asyncio.run(
        load.closed_loop(
            lambda index: call(service, round_ * requests + index), connections=CONNECTIONS, requests=requests
        )
    )
    api_cpu_s = own_cpu_s(service.pid) - before_s
    failures = [why for r in run.records if (why := failure(r)) is not None]
    good = [r for r in run.records if failure(r) is None]
    return Cell(
        arm=arm,
        round=round_,
        requests=requests,
        failed=len(failures),
        first_failure=failures[0] if failures else None,
        duration_s=run.duration_s,
        api_cpu_s=api_cpu_s,
        ttft_p50_s=percentile([r.ttft_s for r in good if r.ttft_s is not None], 50),
        itl_p50_s=percentile([gap_s for r in good for gap_s in r.itl_s], 50),
        generator_cpu_share=run.generator_cpu_share,
    )


def measure(services: dict[str, Service], plan: Plan) -> list[Cell]:
    """Every arm in alternating rounds, after one round each that is thrown away."""
    for arm, service in services.items():
        warm = measure_once(arm, service, plan.rounds, CONNECTIONS)
        if warm.failed:
            raise CannotRun(
                f"{arm} failed {warm.failed} of {warm.requests} requests, or gave other than {TOKENS} tokens"
            )
        settle(service.pid)
    cells = []
    for round_, arm in abba(list(services), plan.rounds):
        cells.append(measure_once(arm, services[arm], round_, plan.requests))
        settle(services[arm].pid)
    return cells


def series(cells: Sequence[Cell], arm: str) -> list[Cell]:
    """The cells of one arm, by round."""
    return sorted((cell for cell in cells if cell.arm == arm), key=lambda cell: cell.round)


def ratios(cells: Sequence[Cell]) -> tuple[float | None, float | None]:
    """The node's requests per second and CPU per request, each over vLLM's in the same round."""
    ours, theirs = series(cells, "node"), series(cells, "vllm")
    return (
        median_ratio([c.requests_per_s for c in ours], [c.requests_per_s for c in theirs]),
        median_ratio([c.cpu_per_request_s for c in ours], [c.cpu_per_request_s for c in theirs]),
    )


def summary(cells: Sequence[Cell]) -> str:
    """One row per arm, medians over rounds."""
    rows = []
    for arm in ARMS:
        of_arm = series(cells, arm)
        rows.append(
            [
                arm,
                number(median(c.requests_per_s for c in of_arm), 1),
                number(median(c.requests_per_s * TOKENS for c in of_arm), 0),
                *(
                    number(_ms(median(values)), 1)
                    for values in (
                        [c.cpu_per_request_s for c in of_arm],
                        [c.ttft_p50_s for c in of_arm],
                        [c.itl_p50_s for c in of_arm],
                    )
                ),
                str(sum(c.failed for c in of_arm)),
            ]
        )
    return table(["arm", "req/s", "tokens/s", "API CPU ms/req", "TTFT p50 ms", "ITL p50 ms", "failed"], rows)


def bars(cells: Sequence[Cell]) -> list[Bar]:
    """The promises of this bench."""
    throughput, cpu = ratios(cells)
    return [
        Bar("the node's requests per second over vLLM's", throughput, 1.0, "x", at_least=True),
        Bar("the node's API CPU per request over vLLM's", cpu, 1.0, "x", at_least=False),
        Bar("requests of either arm that failed", sum(c.failed for c in cells), 0, "requests", at_least=False),
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def run(arguments: argparse.Namespace) -> int:
    """Starts both arms, measures, reports, and gives the exit status."""
    plan = QUICK if arguments.quick else FULL
    machine = describe_machine()
    print(machine)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-bench-")))
        cells = measure({arm: stack.enter_context(start(arm, directory)) for arm in ARMS}, plan)
    print(f"\n{CONNECTIONS} connections, streaming, {TOKENS} tokens per answer\n{summary(cells)}")
    for cell in cells:
        if cell.first_failure is not None:
            print(f"{cell.arm}, round {cell.round}: {cell.failed} failed, the first: {cell.first_failure}")
    busiest = max(cell.generator_cpu_share for cell in cells)
    print(f"\nmedians of {plan.rounds} alternating rounds of {plan.requests} requests")
    print(
        f"the load generator used at most {busiest:.0%} of one core" + (" (too much)" if busiest > CLIENT_LIMIT else "")
    )
    return finish(
        bars(cells),
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={"bench": "local", "plan": asdict(plan), "cells": [asdict(cell) for cell in cells]},
    )


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    arguments = options.parser("The demo model under the node and under vLLM's own server.").parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
