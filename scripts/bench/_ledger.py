"""The ledger: is a cent ever wrong, and what does it cost to be sure?

1. `kill -9` at random moments and at named failpoints, under load, then a restart with the same data. The cloud is the
   emulator with its own append-only bill: each call on it must have exactly one row, none may be above what its row
   counts for, and never may more be admitted than the budget.
2. Sixty-four requests at once at the edge of a budget: on SQLite and on PostgreSQL.
3. Requests per second on 64 busy connections, and latency on 64 that pause, with the ledger and without.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import _ledger_cost
from _harness import options, postgres
from _harness.emulator import Emulator, start_emulator
from _harness.process import CannotRun
from _harness.report import Bar, describe_machine, finish, number, table
from _harness.stats import median
from _ledger_edge import Edge, edge
from _ledger_kills import Campaign, Findings, failpoint_of, forker

_QUICK_KILLS, _KILLS = 16, 500
_EMULATOR = ["--ttft-ms", "60", "--pace-ms", "3", "--answer-tokens", "40"]
_ROOMS = (1, 7, 40)


@contextmanager
def _emulator(folder: Path, *more: str) -> Iterator[Emulator]:
    folder.mkdir()
    with start_emulator([*_EMULATOR, *more], api_key="bench", directory=folder) as emulator:
        yield emulator


def kill(folder: Path, kills: int, seed: int, url: str | None) -> Findings:
    """The campaign on one kind of store."""
    folder.mkdir()
    with _emulator(folder / "cloud") as emulator:
        campaign = Campaign(emulator, folder, seed, url)
        env = {"BENCH_KEY": "bench", "SPILLWAY_DATA": str(folder / "data"), "HOME": str(folder)}
        with forker(env) as nodes:
            for number_ in range(kills):
                campaign.round(nodes, failpoint_of(number_))
                if (number_ + 1) % 25 == 0 or number_ + 1 == kills:
                    print(f"  {number_ + 1} of {kills} kills, {campaign.findings.sent} requests", flush=True)
        campaign.judge()
    return campaign.findings


def edges(folder: Path, url: str | None) -> list[Edge]:
    """The edge of three budgets on one kind of store; a fresh one each time."""
    folder.mkdir()
    store = "PostgreSQL" if url else "SQLite"
    with _emulator(folder / "cloud", "--ttft-ms", "1500") as emulator:
        return [edge(emulator, folder / str(room), store, url, room) for room in _ROOMS]


def report_kills(findings: dict[str, Findings]) -> str:
    """What the kills came to, a column for each store."""
    rows = [
        ["kills", *(str(each.kills.total()) for each in findings.values())],
        [
            "… at a named failpoint",
            *(str(each.kills.total() - each.kills["a random moment"]) for each in findings.values()),
        ],
        ["requests sent", *(str(each.sent) for each in findings.values())],
        ["answered 200 / refused 429", *(f"{each.statuses[200]} / {each.statuses[429]}" for each in findings.values())],
        ["calls on the cloud's bill", *(str(each.billed) for each in findings.values())],
        ["… without exactly one row", *(str(len(each.billed_without_one_row)) for each in findings.values())],
        ["… billed above what their row counts for", *(str(len(each.billed_above_row)) for each in findings.values())],
        ["bill, $", *(number(each.billed_nano_usd / 1e9, 6) for each in findings.values())],
        ["settled + orphaned, $", *(number(each.charged_nano_usd / 1e9, 6) for each in findings.values())],
        ["orphaned rows", *(str(each.states["orphaned"]) for each in findings.values())],
        ["most above the budget, $", *(number(each.over_limit_nano_usd / 1e9, 9) for each in findings.values())],
        ["restart until ready, median s", *(number(median(each.restart_s)) for each in findings.values())],
    ]
    return table(["", *findings], rows)


def bars(findings: dict[str, Findings], found: list[Edge], cost: _ledger_cost.Cost | None) -> list[Bar]:
    """The promises of this bench."""
    made = []
    for store, each in findings.items():
        made += [
            Bar(f"{store}: billed calls without exactly one row", len(each.billed_without_one_row), 0, "calls", False),
            Bar(f"{store}: calls billed above their row", len(each.billed_above_row), 0, "calls", False),
            Bar(f"{store}: admitted above the budget", each.over_limit_nano_usd / 1e9, 0, "$", False),
            Bar(f"{store}: calls on the bill (else nothing was tried)", each.billed, each.kills.total(), "calls", True),
        ]
    for store in dict.fromkeys(each.store for each in found):
        wrong = sum(not each.exact for each in found if each.store == store)
        made.append(Bar(f"{store}: edges of a budget that were not exact", wrong, 0, "edges", False))
    if cost is not None:
        ratio, added_s = cost.throughput_ratio, cost.added_p50_s
        made += [
            Bar("requests per second left by durable accounting", ratio, 0.75, "x", True),
            Bar(
                "added at p50, 64 connections, less than busy",
                None if added_s is None else added_s * 1e3,
                3,
                "ms",
                False,
            ),
        ]
    return made


def run(arguments: argparse.Namespace) -> int:
    """All parts, and the exit status."""
    machine = describe_machine()
    print(machine)
    kills = arguments.kills or (_QUICK_KILLS if arguments.quick else _KILLS)
    programs = postgres.binaries()
    if programs is None:
        raise CannotRun("PostgreSQL's server was not found (Debian, Ubuntu: apt install postgresql)")
    findings: dict[str, Findings] = {}
    found: list[Edge] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spillway-bench-")))
        server = stack.enter_context(postgres.server(programs))
        for store, url in (("SQLite", None), ("PostgreSQL", server.url)):
            print(f"\nkill -9, {store}", flush=True)
            many = kills if url is None else max(4, kills // 5)
            findings[store] = kill(folder / f"kills-{store}", many, arguments.seed, url)
        print(f"\n{report_kills(findings)}\n")
        found = edges(folder / "edge-SQLite", None)
        for room in _ROOMS:
            server.empty()
            found += [each for each in edges(folder / f"edge-PostgreSQL-{room}", server.url) if each.room == room]
        print(table(
            ["store", "room for", "out", "refused", "billed"],
            [[each.store, str(each.room), str(each.out), str(each.refused), str(each.billed)] for each in found],
        ))  # fmt: skip
        rounds, window_s = (4, 2.0) if arguments.quick else (10, 4.0)
        cost, cells = _ledger_cost.measure(folder / "cost", rounds=rounds, window_s=window_s)
    print()
    print(table(
        ["64 connections", "always busy: req/s", "CPU ms/req", f"{number(cost.paced_per_s, 0)} req/s: p50 ms"],
        [
            ["with the ledger", *_row(cost.durable_per_s, cost.durable_cpu_s, cost.durable_paced_p50_s)],
            ["without", *_row(cost.forgetful_per_s, cost.forgetful_cpu_s, cost.forgetful_paced_p50_s)],
        ],
    ))  # fmt: skip
    for name, each in findings.items():
        for mark, billed, held in each.billed_above_row[:5]:
            print(f"{name}: {mark}: billed {billed}, counted {held}")
        for mark in each.billed_without_one_row[:5]:
            print(f"{name}: {mark}: not exactly one row")
    return finish(
        bars(findings, found, cost),
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={
            "bench": "ledger",
            "kills": {name: each.document() for name, each in findings.items()},
            "edges": [asdict(each) for each in found],
            "cost": asdict(cost),
            "cells": [asdict(each) for each in cells],
        },
    )


def _row(per_s: float | None, cpu_s: float | None, p50_s: float | None) -> list[str]:
    return [number(per_s, 0), number(_ms(cpu_s), 3), number(_ms(p50_s), 2)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    parser = options.parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, metavar="N", help="kills on SQLite, a fifth of them on PostgreSQL (500)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
