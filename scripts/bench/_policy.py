"""Policy: traces through the node's routing in virtual time, beside what others would do and what could be done.

One cell is a trace at a load on an engine with a provider, a fifth of its requests pinned. In each the default policy
is replayed, then every fixed queue depth, a plain prediction, and the pinned requests alone; beside them stand the
lower bound of a linear program and a schedule that knew the future. Nothing here is measured on an engine; the figures
are the same on every machine, those of the last table excepted.
"""

import argparse
import importlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from _harness import options
from _harness.process import CannotRun
from _harness.report import Bar, describe_machine, finish, number, table
from _policy_cost import QUEUES, decision_costs
from _policy_lookahead import HEADER as LOOKAHEAD_HEADER
from _policy_lookahead import lookahead_row
from _policy_trouble import HEADER as TROUBLE_HEADER
from _policy_trouble import trouble_rows

from node.errors import SettingsError
from node.money import Price
from node.routing.profile import EngineProfile
from node.routing.values import Target
from node.simulate.baselines import make_policy
from node.simulate.offered import speed_for
from node.simulate.optimum import Bound, lower_bound
from node.simulate.profiles import find_profile, profiles_dir
from node.simulate.providers import Provider
from node.simulate.replay import Outcome, Promise, Replay, replay, summary
from node.simulate.trace import capped, read_trace, sped_up
from node.simulate.values import TraceRequest
from node.simulate.workloads import WorkloadKind, generate

LOADS = (0.7, 1.0, 1.5, 3.0)
PROFILES = ("cpu-demo", "gpu-small", "gpu-medium", "gpu-large")
PINNED_SHARE = 0.2
PRICE = Price(Decimal("0.80"), Decimal("2.50"))  # gemini-2.5-flash, the first stand-in of an 8B model's catalogue entry
DEPTHS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
QUICK_DEPTHS = (0, 2, 8, 32, 128)
QUICK_REQUESTS = 2000
ROUNDS, QUICK_ROUNDS = 30, 10  # of the clairvoyant's search
PREDICTED = "predicted:0.5"
KEPT = 0.99
GENERATED_S, QUICK_GENERATED_S = 1800.0, 300.0
SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
CALM = ("calm", WorkloadKind.POISSON)
LITTLE = 0.01  # of the bill for everything: below that, ratios of what is spent say nothing


@dataclass(frozen=True)
class Cloud:
    """A provider's TTFT beside the promise it has to help keep."""

    ttft_median_s: float
    ttft_budget_s: float
    ttft_sigma: float = 0.35

    def __str__(self) -> str:
        return f"cloud TTFT {self.ttft_median_s:g} s (median), budget {self.ttft_budget_s:g} s"


CLOUDS = (Cloud(0.35, 1.0), Cloud(0.8, 3.0))


@dataclass(frozen=True)
class Source:
    """Where a trace comes from: a file, or a kind of workload made for `seconds`. `most` requests are taken of it."""

    name: str
    path: Path | None
    seconds: float
    most: int | None
    seed: int

    @property
    def calm(self) -> bool:
        """Whether it comes evenly: there is no need to pay for it below full load."""
        return any(word in self.name for word in CALM)


@dataclass(frozen=True)
class Job:
    """One cell to work out."""

    source: Source
    profile: str
    cloud: Cloud
    load: float
    depths: tuple[int, ...]
    rounds: int


@dataclass(frozen=True)
class Cell:
    """What came out of one cell. Spends in nano-dollars; None is not known.

    `alone_share` is what an engine with nothing but the pinned requests keeps of their promises, `pinned_kept_share`
    how many of just those are kept under the policy. `depth` is the best of the fixed depths that keep 99 %.
    """

    trace: str
    profile: str
    cloud: Cloud
    load: float
    calm: bool
    requests: int
    speed: float
    outcome: Outcome
    alone_share: float
    pinned_kept_share: float | None
    bill_nano_usd: int
    bound_nano_usd: int
    clairvoyant_nano_usd: int | None
    depth: int | None
    depth_nano_usd: int | None
    predicted: Outcome
    took_s: float

    @property
    def spend(self) -> int:
        return self.outcome.spend_nano_usd

    def over(self, other_nano_usd: int | None) -> float | None:
        """The policy's spend over another; None where the other is unknown or too little to divide by."""
        if other_nano_usd is None or other_nano_usd < LITTLE * self.bill_nano_usd:
            return None
        return self.spend / other_nano_usd

    @property
    def over_predicted(self) -> float | None:
        """Over the plain prediction's, where that keeps its promise."""
        kept = self.predicted.in_budget_share is not None and self.predicted.in_budget_share >= KEPT
        return self.over(self.predicted.spend_nano_usd) if kept else None


def sources(folder: Path | None, *, quick: bool, seed: int, requests: int | None = None) -> list[Source]:
    """The traces of `folder`, or workloads made up where it is None. Raises CannotRun for a folder without traces."""
    most = QUICK_REQUESTS if quick and requests is None else requests
    if folder is None:
        seconds = QUICK_GENERATED_S if quick else GENERATED_S
        return [Source(kind, None, seconds, most, seed) for kind in WorkloadKind]
    files = sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])
    if not files:
        raise CannotRun(f"{folder}: no traces (*.csv)")
    return [Source(path.name.removesuffix(".gz").removesuffix(".csv"), path, 0.0, most, seed) for path in files]


@lru_cache(maxsize=2)
def requests_of(source: Source, context_tokens: int) -> tuple[TraceRequest, ...]:
    """The trace, cut to the context."""
    if source.path is None:
        made: Iterator[TraceRequest] = generate(WorkloadKind(source.name), seconds=source.seconds, seed=source.seed)
    else:
        made = read_trace(source.path)
    whole = tuple(capped(made, context_tokens))
    return whole if source.most is None else whole[: source.most]


def setting(job: Job) -> tuple[EngineProfile, float, list[TraceRequest], Promise, Provider]:
    """The engine, how much faster than recorded the trace is, the trace, the promise and the provider."""
    profile = find_profile(job.profile)
    recorded = requests_of(job.source, profile.context_tokens)
    speed = speed_for(recorded, profile, job.load)
    trace = list(sped_up(recorded, speed))
    chosen = random.Random(job.source.seed).sample(range(len(trace)), round(PINNED_SHARE * len(trace)))
    promise = Promise(ttft_budget_s=job.cloud.ttft_budget_s, pinned=frozenset(chosen))
    provider = Provider(
        price=PRICE, ttft_median_s=job.cloud.ttft_median_s, ttft_sigma=job.cloud.ttft_sigma, seed=job.source.seed
    )
    return profile, speed, trace, promise, provider


def troubled(job: Job) -> list[list[str]]:
    """The lines of one trace at one load for the table of troubles."""
    profile, _, trace, promise, provider = setting(job)
    return trouble_rows(job.source.name, job.load, trace, profile, provider, promise)


def foreseen(job: Job) -> list[list[str]]:
    """The line of one trace at one load for the table of lookaheads."""
    profile, _, trace, promise, provider = setting(job)
    done = replay(trace, profile, provider, promise, make_policy("overflow"))
    bound = lower_bound(trace, profile, PRICE, ttft_budget_s=promise.ttft_budget_s, pinned=promise.pinned)
    best_nano_usd = clairvoyant_spend(trace, profile, provider, promise, stayed(done), bound, job.rounds)
    spend_nano_usd = summary(trace, promise, done).spend_nano_usd
    return [
        lookahead_row(
            job.source.name,
            job.load,
            trace,
            profile,
            provider,
            promise,
            spend_nano_usd=spend_nano_usd,
            clairvoyant_nano_usd=best_nano_usd or 0,
        )
    ]


def cell(job: Job) -> Cell:
    """Works one cell out."""
    started = time.perf_counter()
    profile, speed, trace, promise, provider = setting(job)

    def through(policy: str) -> tuple[Replay, Outcome]:
        done = replay(trace, profile, provider, promise, make_policy(policy))
        return done, summary(trace, promise, done)

    done, outcome = through("overflow")
    _, predicted = through(PREDICTED)
    fixed = [(depth, through(f"depth:{depth}")[1]) for depth in job.depths]
    best = best_depth(fixed)
    alone = kept_alone(trace, profile, provider, promise)
    bound = lower_bound(trace, profile, PRICE, ttft_budget_s=promise.ttft_budget_s, pinned=promise.pinned)
    return Cell(
        trace=job.source.name,
        profile=job.profile,
        cloud=job.cloud,
        load=job.load,
        calm=job.source.calm,
        requests=len(trace),
        speed=speed,
        outcome=outcome,
        alone_share=len(alone) / max(1, len(promise.pinned)),
        pinned_kept_share=kept_share(alone, done, promise.ttft_budget_s),
        bill_nano_usd=bound.all_cloud_nano_usd,
        bound_nano_usd=bound.spend_nano_usd,
        clairvoyant_nano_usd=clairvoyant_spend(trace, profile, provider, promise, stayed(done), bound, job.rounds),
        depth=None if best is None else best[0],
        depth_nano_usd=None if best is None else best[1].spend_nano_usd,
        predicted=predicted,
        took_s=time.perf_counter() - started,
    )


def best_depth(fixed: Sequence[tuple[int, Outcome]]) -> tuple[int, Outcome] | None:
    """The cheapest of the depths that keep 99 % of the promises; None where none does."""
    keeping = [each for each in fixed if each[1].in_budget_share is not None and each[1].in_budget_share >= KEPT]
    return min(keeping, key=lambda each: each[1].spend_nano_usd) if keeping else None


def kept_alone(
    trace: Sequence[TraceRequest], profile: EngineProfile, provider: Provider, promise: Promise
) -> frozenset[int]:
    """Which pinned requests get their first token in time from an engine that serves nothing else."""
    pinned = sorted(promise.pinned)
    theirs = [trace[index] for index in pinned]
    everyone = Promise(ttft_budget_s=promise.ttft_budget_s, pinned=frozenset(range(len(theirs))))
    done = replay(theirs, profile, provider, everyone, make_policy("local"))
    return frozenset(pinned[place] for place in range(len(theirs)) if in_time(done, place, promise.ttft_budget_s))


def in_time(done: Replay, index: int, budget_s: float) -> bool:
    fate = done.fates[index]
    return fate is not None and fate.ttft_s is not None and fate.ttft_s <= budget_s


def kept_share(possible: frozenset[int], done: Replay, budget_s: float) -> float | None:
    """How many of the `possible` ones were in time; None where nothing was possible."""
    return fmean(in_time(done, index, budget_s) for index in possible) if possible else None


def clairvoyant_spend(
    trace: Sequence[TraceRequest],
    profile: EngineProfile,
    provider: Provider,
    promise: Promise,
    start: frozenset[int],
    bound: Bound,
    rounds: int,
) -> int | None:
    """What the schedule that knows the future spends, searched from `start` too; None while there is no such module."""
    try:
        module: Any = importlib.import_module("node.simulate.clairvoyant")
    except ModuleNotFoundError:
        return None
    found = module.clairvoyant(trace, profile, provider, promise, starts=[start], bound=bound, rounds=rounds)
    return int(found.spend_nano_usd)


def stayed(done: Replay) -> frozenset[int]:
    """Those that were served here."""
    here = (fate is not None and fate.target is Target.LOCAL for fate in done.fates)
    return frozenset(index for index, local in enumerate(here) if local)


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


HEADER = [
    "trace",
    "load",
    "in budget",
    "pinned",
    "alone could",
    "cloud",
    "bill",
    "x bound",
    "x clairvoyant",
    "x best depth",
    "(depth)",
    f"x {PREDICTED}",
    "(in budget)",
]


def rows(cells: Sequence[Cell]) -> list[list[str]]:
    """A line per trace and load. `bill` is the spend as a share of what everything that may leave would cost."""
    return [
        [
            each.trace,
            f"{each.load:g}",
            share(each.outcome.in_budget_share),
            share(each.outcome.pinned_in_budget_share),
            share(each.alone_share),
            share(each.outcome.cloud_share),
            share(each.spend / each.bill_nano_usd if each.bill_nano_usd else None),
            number(each.over(each.bound_nano_usd)),
            number(each.over(each.clairvoyant_nano_usd)),
            number(each.over(each.depth_nano_usd)),
            "-" if each.depth is None else str(each.depth),
            number(each.over_predicted),
            share(each.predicted.in_budget_share),
        ]
        for each in cells
    ]


def tables(cells: Sequence[Cell]) -> Iterator[str]:
    """A table per profile and provider."""
    for profile, cloud in dict.fromkeys((each.profile, each.cloud) for each in cells):
        inside = [each for each in cells if (each.profile, each.cloud) == (profile, cloud)]
        inside.sort(key=lambda each: (each.trace, each.load))
        yield f"{profile}, {cloud}\n\n{table(HEADER, rows(inside))}"


def worst(cells: Sequence[Cell]) -> str:
    """Where each promise is kept worst, for whoever wants to do better."""
    views: list[tuple[str, Callable[[Cell], float | None], bool]] = [
        ("in budget", lambda each: each.outcome.in_budget_share, True),
        ("pinned, of those possible", lambda each: each.pinned_kept_share, True),
        ("x clairvoyant", lambda each: each.over(each.clairvoyant_nano_usd), False),
        ("x best depth", lambda each: each.over(each.depth_nano_usd), False),
        (f"x {PREDICTED}", lambda each: each.over_predicted, False),
    ]
    told = []
    for name, view, high_is_good in views:
        found = [(value, each) for each in cells if (value := view(each)) is not None]
        found.sort(key=lambda pair: pair[0] if high_is_good else -pair[0])
        for value, each in found[:3]:
            where = f"{each.trace} x {each.load:g}, {each.profile}, {each.cloud}"
            told.append([name, share(value) if high_is_good else number(value), where])
    return table(["worst", "", "where"], told)


def known(values: Iterator[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def bars(cells: Sequence[Cell], costs_us: dict[int, float]) -> list[Bar]:
    """The promises of this bench; the worst cell counts, unless it says mean.

    In the mean a ratio below 1 counts as 1: it is bought with promises that the clairvoyant keeps, or its search has
    not come to an end.
    """
    inside = known(each.outcome.in_budget_share for each in cells)
    pinned = known(each.pinned_kept_share for each in cells)
    calm = [each.outcome.cloud_share for each in cells if each.calm and each.load == min(LOADS)]
    clairvoyant = known(each.over(each.clairvoyant_nano_usd) for each in cells)
    depth = known(each.over(each.depth_nano_usd) for each in cells)
    unneeded = [
        (each.spend - each.clairvoyant_nano_usd) / each.bill_nano_usd
        for each in cells
        if each.clairvoyant_nano_usd is not None and each.bill_nano_usd and each.over(each.clairvoyant_nano_usd) is None
    ]
    made = [
        Bar("spillable requests inside the budget", _percent(min(inside, default=None)), 99, "%", at_least=True),
        Bar(
            "pinned requests inside the budget, of those the engine alone could serve so",
            _percent(min(pinned, default=None)),
            99,
            "%",
            at_least=True,
        ),
        Bar(
            "spend over the clairvoyant's, mean",
            fmean(max(1.0, ratio) for ratio in clairvoyant) if clairvoyant else None,
            1.10,
            "x",
            at_least=False,
        ),
        Bar("spend over the clairvoyant's", max(clairvoyant, default=None), 1.25, "x", at_least=False),
        Bar("spend over the best fixed depth's", max(depth, default=None), 1.0, "x", at_least=False),
        Bar(f"deciding, at a queue of {1000:,}", costs_us.get(1000), 50, "us", at_least=False),
        Bar(
            f"deciding at {QUEUES[-1]:,} over {QUEUES[0]:,} (log n: {_log_ratio():.0f})",
            costs_us[QUEUES[-1]] / costs_us[QUEUES[0]] if costs_us else None,
            _log_ratio(),
            "x",
            at_least=False,
        ),
    ]
    if calm:
        made.append(Bar("calm at load 0.7: cloud share", _percent(max(calm)), 1, "%", at_least=False))
    if unneeded:
        name = "spent beyond the clairvoyant's, where that is under 1 % of the bill for everything"
        made.append(Bar(name, _percent(max(unneeded)), 1, "% of that bill", at_least=False))
    return made


def _log_ratio() -> float:
    """How much log n grows from the shortest queue to the longest."""
    return (len(str(QUEUES[-1])) - 1) / (len(str(QUEUES[0])) - 1)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Every cell asked for."""
    folder = arguments.traces or (SHARED if SHARED.is_dir() else None)
    there = {path.stem for path in profiles_dir().glob("*.json")}
    profiles = arguments.profile or [name for name in PROFILES if name in there]
    short = arguments.quick or arguments.requests is not None
    rounds = QUICK_ROUNDS if short else ROUNDS
    if arguments.quick and not arguments.profile:
        profiles = [name for name in profiles if name == "gpu-large"]
    return [
        Job(source, profile, cloud, load, QUICK_DEPTHS if short else DEPTHS, rounds)
        for source in sources(folder, quick=arguments.quick, seed=arguments.seed, requests=arguments.requests)
        for profile in profiles
        for cloud in (CLOUDS[:1] if arguments.quick else CLOUDS)
        for load in arguments.load or LOADS
    ]


def show_instead(
    wanted: Sequence[Job], header: Sequence[str], work: Callable[[Job], list[list[str]]], processes: int
) -> int:
    """Prints the lines that `work` has for each job, a table per profile and provider; there are no bars."""
    with ProcessPoolExecutor(processes) as pool:
        found = list(zip(wanted, pool.map(work, wanted), strict=True))
    for profile, cloud in dict.fromkeys((job.profile, job.cloud) for job in wanted):
        inside = [row for job, rows in found if (job.profile, job.cloud) == (profile, cloud) for row in rows]
        print(f"\n{profile}, {cloud}\n\n{table(header, inside)}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Works out the cells in as many processes as asked for, and reports."""
    wanted = jobs(arguments)
    machine = describe_machine()
    print(machine)
    if arguments.trouble:
        return show_instead(wanted, TROUBLE_HEADER, troubled, arguments.processes)
    if arguments.lookahead:
        return show_instead(wanted, LOOKAHEAD_HEADER, foreseen, arguments.processes)
    costs_us = decision_costs()
    cells = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        pending = [pool.submit(cell, job) for job in wanted]
        try:
            for count, future in enumerate(as_completed(pending), start=1):
                done = future.result()
                cells.append(done)
                told = f"{done.trace} x {done.load:g} on {done.profile}: {done.took_s:.1f} s"
                print(f"{count} of {len(wanted)}: {told}", file=sys.stderr, flush=True)
        except (SettingsError, ValueError) as error:
            pool.shutdown(cancel_futures=True)
            raise CannotRun(str(error)) from error
    for shown in tables(cells):
        print(f"\n{shown}")
    print(f"\n{worst(cells)}")
    print(f"\nratios are left out where the other spends under {LITTLE:.0%} of the bill for everything")
    cost_rows = [[f"{queue:,}", number(cost, 1)] for queue, cost in costs_us.items()]
    print(f"\n{table(['requests waiting', 'us per request'], cost_rows)}\n")
    return finish(
        bars(cells, costs_us),
        check=arguments.check,
        json_path=arguments.json,
        machine=machine,
        figures={
            "bench": "policy",
            "pinned_share": PINNED_SHARE,
            "decision_us": costs_us,
            "cells": [asdict(each) for each in cells],
        },
    )


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    parser = options.parser("Traces through the routing in virtual time, beside what others do and the optimum.")
    parser.add_argument(
        "--traces", type=Path, metavar="DIR", help="traces to replay (default: ../shared/traces, or made up)"
    )
    parser.add_argument("--profile", action="append", metavar="NAME", help="engine profile (repeatable; default: all)")
    parser.add_argument("--load", action="append", type=float, metavar="L", help="offered load (repeatable)")
    parser.add_argument(
        "--requests", type=int, metavar="N", help="take the first N of each trace (default: all; 2000 with --quick)"
    )
    parser.add_argument(
        "--trouble", action="store_true", help="instead: what a failing provider does to the promises, without bars"
    )
    parser.add_argument(
        "--lookahead", action="store_true", help="instead: how far ahead the clairvoyant has to look, without bars"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of pins and TTFTs (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="to use (default: %(default)s)")
    arguments = parser.parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
