"""Truth: one trace through the real node with the real engine, and through the simulator with the calibrated profile.

The engine is calibrated in the same run, on the machine as it is now. Every request is pinned, so that all of it is the
local engine's doing. The simulator gets the lengths that the engine really counted; it knows nothing else of the run.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

import psutil
from _harness import load, options
from _harness.node import ADMIN_ENV, read_stats
from _harness.process import CannotRun, Service, free_port, running, settle, usage
from _harness.report import Bar, describe_machine, finish, number, table
from _harness.stats import median, percentile

from node.money import Price
from node.routing.policy import OverflowPolicy
from node.routing.profile import EngineProfile
from node.routing.values import Limits
from node.settings import RoutingSettings
from node.simulate.offered import offered_load, speed_for
from node.simulate.profiles import read_profile
from node.simulate.providers import Provider
from node.simulate.replay import Promise, replay
from node.simulate.trace import sped_up
from node.simulate.values import TraceRequest
from node.simulate.workloads import WorkloadKind, generate

READY_WITHIN_S = 300
WARM_UP_CALLS = 48
TTFT_BUDGET_S = 2.0
PERCENTILES = (50, 90, 95, 99)
PREDICTION_BAR = 0.20
SIMULATOR_BAR = 0.30
# Spare for a prompt that comes out a few tokens longer than was aimed for.
SPARE_TOKENS = 16
TEXT = (
    "the engine holds a queue of requests and each request has a budget for its first token so when load is high what "
    "may leave goes to the cloud at the last safe moment while pinned work stays here model price node answer prompt "
    "context cache step batch server local provider spend time private key route reason decide wait slot memory"
)


@dataclass(frozen=True)
class Plan:
    """`loads` as shares of what the engine can do, each for `seconds`, `rounds` times with prompts of their own."""

    loads: tuple[float, ...]
    seconds: float
    rounds: int
    calibrate_s: float
    seed: int = 1


QUICK = Plan(loads=(0.8,), seconds=40, rounds=1, calibrate_s=20)
FULL = Plan(loads=(0.7, 0.9), seconds=45, rounds=2, calibrate_s=60)


@dataclass(frozen=True)
class Told:
    """One request. `ttft_s` is the client's, from the planned arrival; `queue_s` of it were in the node's queue.

    `predicted_s` is what the node predicted from the hand-over to the engine on, `node_ttft_s` what it measured itself.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    node_ttft_s: float
    queue_s: float
    predicted_s: float | None

    @property
    def error(self) -> float | None:
        """Of the prediction, relative to what came of it at the client."""
        if self.predicted_s is None:
            return None
        came_s = max(1e-4, self.ttft_s - self.queue_s)
        return abs(self.predicted_s - came_s) / came_s


@dataclass(frozen=True)
class Cell:
    """One round at one load: every request that was answered, and the simulator's TTFT for each."""

    load: float
    round: int
    told: tuple[Told, ...]
    simulated_s: tuple[float, ...]
    failed: int
    first_failure: str | None
    generator_cpu_share: float
    others_cpu_cores: float | None = None
    """What other programs used of the machine meanwhile: an engine on the CPU runs when nothing else wants a core."""
    node_step: dict[str, float] | None = None
    """The step model that the node itself had learned by the end of the round."""

    def real(self, q: float) -> float | None:
        return percentile([each.ttft_s for each in self.told], q)

    def simulated(self, q: float) -> float | None:
        return percentile(self.simulated_s, q)

    @property
    def prediction_error(self) -> float | None:
        """The median over requests."""
        return median(each.error for each in self.told)

    @property
    def simulator_error(self) -> float | None:
        """How far the simulator's p95 is off, as a share of the real one."""
        real_s, simulated_s = self.real(95), self.simulated(95)
        return None if not real_s or simulated_s is None else abs(simulated_s / real_s - 1)


def workload(profile: EngineProfile, load_: float, seconds: float, seed: int) -> list[TraceRequest]:
    """Poisson arrivals of lengths as in a published trace, cut to the context, at the speed that offers `load_`."""
    most = profile.context_tokens - SPARE_TOKENS
    requests: list[TraceRequest] = []
    for each in generate(WorkloadKind.POISSON, seconds=86_400, seed=seed):
        prompt_tokens = min(each.prompt_tokens, most - 1)
        output_tokens = min(each.output_tokens, most - prompt_tokens)
        requests.append(TraceRequest(each.arrival_s, prompt_tokens, output_tokens))
        if len(requests) > 1 and len(requests) % 10 == 0:
            duration_s = requests[-1].arrival_s - requests[0].arrival_s
            if offered_load(requests, profile) * duration_s >= load_ * seconds:
                break
    first_s = requests[0].arrival_s
    moved = [TraceRequest(each.arrival_s - first_s, each.prompt_tokens, each.output_tokens) for each in requests]
    return list(sped_up(moved, speed_for(moved, profile, load_)))


class Writer:
    """Prompts of a given number of tokens, no two beginning alike."""

    def __init__(self, model: Path, seed: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(model))
        self._words = TEXT.split()
        self._rng = random.Random(seed)

    def prompt(self, tokens: int) -> str:
        """Text of about `tokens` tokens: what the engine counts is what counts."""
        words = [self._rng.choice(self._words) for _ in range(tokens)]
        ids = self._tokenizer.encode(" ".join(words), add_special_tokens=False, verbose=False)[:tokens]
        return str(self._tokenizer.decode(ids))


def call(node: Service, prompt: str, output_tokens: int) -> load.Call:
    """Pinned, streamed, and of exactly so many tokens."""
    body = {
        "model": "demo",
        "prompt": prompt,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "spillway": {"require_local": True},
    }
    return load.Call(f"{node.url}/v1/completions", json.dumps(body).encode(), stream=True)


def failure(record: load.Record, output_tokens: int) -> str | None:
    """Why an answer does not count, None for a good one."""
    if not record.ok:
        return record.error or f"status {record.status}"
    tokens = (record.usage or {}).get("completion_tokens")
    if tokens != output_tokens:
        return f"{tokens} tokens instead of {output_tokens}"
    return None if record.ttft_s is not None else "no text"


def read_outcomes(path: Path) -> dict[str, dict[str, float | None]]:
    """What the node wrote down, by request id."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["request_id"]: line for line in lines}


def pair(
    trace: Sequence[TraceRequest], records: Sequence[load.Record], outcomes: dict[str, dict[str, float | None]]
) -> tuple[list[Told], list[str]]:
    """Client's and node's side of every good answer, and why the others do not count."""
    told, failures = [], []
    for request, record in zip(trace, records, strict=True):
        why = failure(record, request.output_tokens)
        headers = {name.lower(): value for name, value in record.headers.items()}
        outcome = outcomes.get(headers.get("x-request-id", ""))
        if why is None and (outcome is None or outcome["ttft_s"] is None):
            why = "the node knows nothing of it"
        if why is not None:
            failures.append(why)
            continue
        assert outcome is not None
        assert record.ttft_s is not None
        assert record.usage is not None
        told.append(
            Told(
                arrival_s=request.arrival_s,
                prompt_tokens=record.usage["prompt_tokens"],
                output_tokens=record.usage["completion_tokens"],
                ttft_s=record.ttft_s,
                node_ttft_s=outcome["ttft_s"] or 0.0,
                queue_s=outcome["queue_s"] or 0.0,
                predicted_s=outcome["predicted_ttft_s"],
            )
        )
    return told, failures


def simulate(told: Sequence[Told], profile: EngineProfile) -> list[float]:
    """The simulator's TTFT for the same requests, under the node's default settings."""
    routing = RoutingSettings()
    limits = Limits(
        feed_ahead=max(1, profile.max_sequences // 8),
        margin_s=routing.margin_ms / 1000,
        feed_s=None if routing.feed_ms is None else routing.feed_ms / 1000,
    )
    trace = [TraceRequest(each.arrival_s, each.prompt_tokens, each.output_tokens) for each in told]
    done = replay(
        trace,
        profile,
        Provider(price=Price(Decimal(1), Decimal(1))),
        Promise(ttft_budget_s=TTFT_BUDGET_S, pinned=frozenset(range(len(trace)))),
        OverflowPolicy(limits),
    )
    ttfts = [fate.ttft_s for fate in done.fates if fate is not None and fate.ttft_s is not None]
    if len(ttfts) != len(trace):
        raise CannotRun(f"the simulator answered {len(ttfts)} of {len(trace)} requests")
    return ttfts


def measure(node: Service, model: Path, outcomes: Path, profile: EngineProfile, plan: Plan) -> list[Cell]:
    """Every load in every round, after some calls from which the node learns its first."""
    writer = Writer(model, f"{plan.seed}/warm-up")
    rng = random.Random(plan.seed)
    warm = [call(node, writer.prompt(rng.randint(50, 1500)), rng.randint(20, 200)) for _ in range(WARM_UP_CALLS)]
    run = asyncio.run(load.closed_loop(warm.__getitem__, connections=8, requests=len(warm)))
    if failed := [record for record in run.records if not record.ok]:
        raise CannotRun(f"the node does not answer: {failed[0].status} {failed[0].error}")
    settle(node.pid)
    cells = []
    for round_ in range(plan.rounds):
        for load_ in plan.loads:
            trace = workload(profile, load_, plan.seconds, plan.seed)
            writer = Writer(model, f"{plan.seed}/{load_}/{round_}")
            calls = [
                (each.arrival_s, call(node, writer.prompt(each.prompt_tokens), each.output_tokens)) for each in trace
            ]
            before = machine_and_ours(node)
            run = asyncio.run(load.open_loop(calls))
            machine_s, ours_s = (now - then for now, then in zip(machine_and_ours(node), before, strict=True))
            settle(node.pid)
            told, failures = pair(trace, run.records, read_outcomes(outcomes))
            cells.append(
                Cell(
                    load=load_,
                    round=round_,
                    told=tuple(told),
                    simulated_s=tuple(simulate(told, profile)),
                    failed=len(failures),
                    first_failure=failures[0] if failures else None,
                    generator_cpu_share=run.generator_cpu_share,
                    others_cpu_cores=max(0.0, machine_s - ours_s) / run.duration_s,
                    node_step=step_model(node),
                )
            )
    return cells


def machine_and_ours(node: Service) -> tuple[float, float]:
    """CPU seconds so far: of the whole machine, and of node, engine and this process."""
    times = psutil.cpu_times()
    busy_s = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    return busy_s, usage(node.pid).cpu_s + time.process_time()


def step_model(node: Service) -> dict[str, float] | None:
    """What the node has learned of its engine's steps."""
    step: dict[str, float] | None = json.loads(read_stats(node))["engines"]["demo"]["step"]
    return step


def circumstances(cell: Cell) -> str:
    """What a round ran under, in a line."""
    step = cell.node_step
    learned = (
        "nothing learned"
        if step is None
        else f"the node had learned {step['base_s'] * 1e3:.2f} ms + {step['per_decode_s'] * 1e6:.0f} us a sequence + "
        f"{step['per_prefill_token_s'] * 1e6:.1f} us a prompt token"
    )
    return (
        f"load {cell.load:g}, round {cell.round + 1}: other programs used {cell.others_cpu_cores:.2f} cores; {learned}"
    )


def summary(cells: Sequence[Cell]) -> str:
    """The distributions side by side, in milliseconds."""
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell.load, cell.round)):
        head = f"load {cell.load:g}, round {cell.round + 1}"
        real = [cell.real(q) for q in PERCENTILES]
        simulated = [cell.simulated(q) for q in PERCENTILES]
        rows.append([f"{head}: real", str(len(cell.told)), *(number(_ms(each), 0) for each in real), ""])
        rows.append(
            [f"{head}: simulated", str(len(cell.simulated_s)), *(number(_ms(each), 0) for each in simulated), ""]
        )
        foreseen = [each.queue_s + each.predicted_s for each in cell.told if each.predicted_s is not None]
        rows.append(
            [
                f"{head}: predicted",
                str(len(foreseen)),
                *(number(_ms(percentile(foreseen, q)), 0) for q in PERCENTILES),
                "-" if cell.prediction_error is None else f"{cell.prediction_error:.1%}",
            ]
        )
    return table(["TTFT, ms", "requests", *(f"p{q}" for q in PERCENTILES), "median error"], rows)


def bars(cells: Sequence[Cell]) -> list[Bar]:
    """The promises of this bench, over the worst round."""
    predictions = [cell.prediction_error for cell in cells]
    simulators = [cell.simulator_error for cell in cells]
    return [
        Bar(
            "median absolute error of the node's TTFT prediction, worst round",
            _worst(predictions),
            PREDICTION_BAR * 100,
            "%",
            at_least=False,
        ),
        Bar(
            "the simulator's p95 TTFT off the real one, worst round",
            _worst(simulators),
            SIMULATOR_BAR * 100,
            "%",
            at_least=False,
        ),
        Bar("requests that failed", sum(cell.failed for cell in cells), 0, "requests", at_least=False),
    ]


def _worst(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return 100 * max(known) if known and len(known) == len(errors) else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def calibrated(directory: Path, plan: Plan) -> EngineProfile:
    """What `spillway calibrate` finds, on this machine and now."""
    profile = directory / "calibrated.json"
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("spillway")), "calibrate", "--model", "demo"),
            *("--seconds", str(plan.calibrate_s), "-o", str(profile)),
        ],
        cwd=directory,
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotRun(f"spillway calibrate failed:\n{done.stderr[-2000:]}")
    said = done.stdout
    print(f"\ncalibrated in {plan.calibrate_s:g} s:\n{said[said.find('step with') :].strip()}")  # after vLLM's log
    return read_profile(profile)


def run(arguments: argparse.Namespace) -> int:
    """Calibrates, measures, simulates, reports, and gives the exit status."""
    plan = QUICK if arguments.quick else FULL
    machine = describe_machine()
    print(machine)
    model = Path(__file__).resolve().parents[2] / "models" / "demo"
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-bench-")))
        profile = calibrated(directory, plan)
        port, outcomes = free_port(), directory / "outcomes.jsonl"
        config = directory / "spillway.yaml"
        config.write_text(f"listen: {{port: {port}}}\nmodels: [demo]\ncache: {{max_bytes: 0}}\n")
        node = stack.enter_context(
            running(
                "node",
                [sys.executable, str(Path(__file__).with_name("_truth_node.py")), str(config), str(outcomes)],
                url=f"http://127.0.0.1:{port}",
                ready_path="/readyz",
                log=directory / "node.log",
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), **ADMIN_ENV},
                ready_within_s=READY_WITHIN_S,
            )
        )
        cells = measure(node, model, outcomes, profile, plan)
    print(f"\nall pinned, streamed, {plan.seconds:g} s a round; predicted: queue and prediction at the hand-over")
    print(summary(cells))
    for cell in cells:
        if cell.first_failure is not None:
            print(f"load {cell.load:g}, round {cell.round + 1}: {cell.failed} failed, the first: {cell.first_failure}")
        print(circumstances(cell))
    print(f"\nthe load generator used at most {max(cell.generator_cpu_share for cell in cells):.0%} of one core")
    return finish(
        bars(cells),
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={
            "bench": "truth",
            "plan": asdict(plan),
            "profile": asdict(profile),
            "cells": [asdict(cell) for cell in cells],
        },
    )


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    parser = options.parser("The simulator and the node's own predictions against the real engine.")
    arguments = parser.parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
