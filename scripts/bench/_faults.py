"""Faults: a node with a real engine and three emulated providers, while all of them fail in every way there is.

The providers are `python -m node.emulator`, processes with a log, a bill and the full text of all they were to say:
what a client got is held against that. Everything is seen from outside: what clients hear, what the operator's pages
say, /proc, and the tree of processes.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _faults_campaign import Campaign, campaign
from _faults_clients import HERE
from _faults_engine import Blow, Hour, blow, hour_of, saturated_gaps_s
from _faults_judge import Wrong
from _faults_node import Footprint, Pause
from _faults_providers import Outage, failing, killed
from _faults_setup import HEALTH_INTERVAL_S, STALL_S, world
from _harness import options
from _harness.process import CannotRun
from _harness.report import Bar, describe_machine, finish, number, table

from node.local.supervision import Rules

QUICK_REQUESTS, FULL_REQUESTS = 800, 10_000
PARTS = ("campaign", "provider", "engine")
_REST_S, _LONG_REST_S = 10.0, 60.0
_BACK_WITHIN_S = 240.0


@dataclass(frozen=True)
class Plan:
    """How much of it."""

    requests: int
    kills: int
    rate_per_s: float
    saturated_s: float
    seed: int
    quick: bool
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Quiet:
    """How the node's event loop turned during a part: pauses over 50 ms, and the longest worth telling (20 ms)."""

    long_pauses: int
    longest: Pause | None


@dataclass(frozen=True)
class Found:
    """Everything that was measured; a part that was left out is None, and not in `loop`."""

    campaign: Campaign | None
    outages: tuple[Outage, ...]
    stopped: Blow | None
    killed: Blow | None
    hour: Hour | None
    loop: dict[str, Quiet]
    before: Footprint
    after: Footprint
    leaked: tuple[str, ...]


async def measure(plan: Plan, folder: Path) -> Found:
    """Runs every part of the plan, one after the other, on the same node."""
    async with world(folder, plan.seed) as made:
        node = made.node
        before, descriptors = await node.footprint(), node.descriptors()
        watching = asyncio.create_task(node.watch())
        loop: dict[str, Quiet] = {}
        parts: dict[str, Any] = {}
        for name, part in (
            ("campaign", lambda: campaign(made, plan.seed, plan.requests, plan.kills)),
            ("provider killed", lambda: killed(made, plan.rate_per_s)),
            ("provider failing", lambda: failing(made, plan.rate_per_s)),
            ("engine stopped", lambda: blow(made, signal.SIGSTOP, rate_per_s=plan.rate_per_s, seed=plan.seed)),
            ("engine killed", lambda: blow(made, signal.SIGKILL, rate_per_s=plan.rate_per_s, seed=plan.seed)),
            ("engine full", lambda: saturated_gaps_s(made, plan.saturated_s)),
        ):
            if name.split()[0] not in plan.parts:
                continue
            if name.startswith("engine"):
                await node.engine_ready(HERE, _BACK_WITHIN_S)
            since_s, began = time.monotonic(), await node.stats()
            parts[name] = await part()
            ended = await node.stats()
            loop[name] = Quiet(
                long_pauses=ended["loop"]["pauses_over_50_ms"] - began["loop"]["pauses_over_50_ms"],
                longest=node.pauses.longest(since_s, time.monotonic()),
            )
            print(f"{name}: {time.monotonic() - since_s:.0f} s", flush=True)
        await node.engine_ready(HERE, _BACK_WITHIN_S)
        watching.cancel()
        after = await node.footprint_at_rest(before, _REST_S if plan.quick else _LONG_REST_S)
        more = after.beyond(before)
        leaked = [f"{count} {what}" for what, count in more.items()]
        if "descriptors" in more:
            new = Counter(map(_kind, node.descriptors())) - Counter(map(_kind, descriptors))
            leaked += [f"{count} x {what}" for what, count in new.items()]
        full = parts.get("engine full")
        return Found(
            campaign=parts.get("campaign"),
            outages=tuple(parts[name] for name in ("provider killed", "provider failing") if name in parts),
            stopped=parts.get("engine stopped"),
            killed=parts.get("engine killed"),
            hour=None if full is None else hour_of(full, Rules(stall_s=STALL_S), plan.seed),
            loop=loop,
            before=before,
            after=after,
            leaked=tuple(leaked),
        )


def _kind(descriptor: str) -> str:
    """What it is, without which of its kind."""
    return descriptor.partition(":[")[0]


def bars(found: Found) -> list[Bar]:
    """The promises of this bench, of the parts that were run."""
    made = []
    if (told := found.campaign) is not None:
        made += [Bar(f"{wrong}", told.count(wrong), 0, "requests", at_least=False) for wrong in Wrong]
        made.append(Bar("attempts per request", told.attempts_per_request, 1.2, "attempts", at_least=False))
    leaks = found.after.beyond(found.before)
    made += [
        Bar(f"leaked {what}", leaks.get(what, 0), 0, what, at_least=False)
        for what in asdict(found.before)
        if what != "pooled"
    ]
    for name, each in (("killed", found.killed), ("stopped", found.stopped)):
        if each is not None:
            made += _bars_of_blow(name, each)
    if found.hour is not None:
        made += [
            Bar("healthy engine killed in an hour of full steps", found.hour.killed, 0, "times", at_least=False),
            Bar("the same with this bench's stall limit", found.hour.killed_strict, 0, "times", at_least=False),
        ]
    for outage in found.outages:
        made += _bars_of_outage(outage)
    pauses = sum(each.long_pauses for each in found.loop.values())
    made.append(Bar("pauses of the event loop over 50 ms", pauses, 0, "pauses", at_least=False))
    return made


def _bars_of_blow(name: str, blow: Blow) -> list[Bar]:
    untold = blow.begun - blow.told
    made = [
        Bar(f"engine {name}: unanswered spillable requests served", blow.rescued_percent, 99, "%", at_least=True),
        Bar(f"engine {name}: begun streams that were not told", untold, 0, "streams", at_least=False),
        Bar(f"engine {name}: wrong answers", blow.wrong, 0, "requests", at_least=False),
    ]
    if blow.noticed_s is None or blow.limit_s is None:
        made.append(Bar(f"engine {name}: back after its load time plus", blow.overtime_s, 5, "s", at_least=False))
    else:
        late_s = blow.noticed_s - blow.limit_s
        made.append(Bar(f"engine {name}: noticed after the stall limit plus", late_s, 5, "s", at_least=False))
    return made


def _bars_of_outage(outage: Outage) -> list[Bar]:
    name = f"provider {outage.name}"
    made = [
        Bar(f"{name}: served by the others", outage.served_percent, 99.5, "%", at_least=True),
        Bar(f"{name}: breaker open after", outage.opened_s, 2, "s", at_least=False),
        Bar(f"{name}: wrong answers", outage.wrong, 0, "requests", at_least=False),
    ]
    if outage.name == "killed":
        made.append(
            Bar(f"{name}: called again after its return", outage.back_s, HEALTH_INTERVAL_S, "s", at_least=False)
        )
    return made


def report(found: Found) -> str:
    """One table of everything."""
    rows = [] if found.campaign is None else _rows_of_campaign(found.campaign)
    for outage in found.outages:
        rows += _rows_of_outage(outage)
    for name, each in (("SIGSTOP", found.stopped), ("SIGKILL", found.killed)):
        if each is not None:
            rows += _rows_of_blow(name, each)
    if (hour := found.hour) is not None:
        rows += [
            [
                "an hour of full steps: steps, median, longest",
                f"{hour.hours_steps:,}, {1000 * hour.median_step_s:.1f} ms, {hour.longest_step_s:.3f} s",
            ],
            ["suspected, killed", f"{hour.suspected}, {hour.killed}"],
            [f"the same with a stall limit of {STALL_S:g} s", f"{hour.suspected_strict}, {hour.killed_strict}"],
        ]
    rows.append(["leaked", ", ".join(found.leaked) or "nothing"])
    for name, quiet in found.loop.items():
        rows.append([f"pauses of the event loop over 50 ms, {name}", f"{quiet.long_pauses}; {_longest(quiet.longest)}"])
    return table(["what", "measured"], rows)


def _rows_of_campaign(told: Campaign) -> list[list[str]]:
    return [
        ["requests, faults of groups C and D", f"{told.requests:,} in {told.seconds:.0f} s"],
        ["different faults that hit a call, engine kills", f"{told.switches}, {told.kills}"],
        ["answered whole", f"{told.whole:,} ({told.whole / told.requests:.1%})"],
        ["of those by", ", ".join(f"{name} {count:,}" for name, count in sorted(told.by_backend.items()))],
        ["refused with 429 or 503", f"{told.refused:,}"],
        ["other errors before the first byte", f"{told.errors_before:,}"],
        ["error events after it", f"{told.errors_after:,}"],
        ["clients that left", f"{told.left:,}"],
        *([wrong.value, str(told.count(wrong))] for wrong in Wrong),
        ["attempts per request that went to a provider", f"{number(told.attempts_per_request, 3)} of {told.called:,}"],
        ["time to the end, p99 and longest", f"{number(told.p99_s)} s, {told.longest_s:.2f} s"],
    ]


def _rows_of_blow(name: str, blow: Blow) -> list[list[str]]:
    rows = [
        [f"engine {name}: unanswered and spillable, served", f"{blow.rescued} of {blow.unanswered}"],
        [f"engine {name}: of those by the cloud", str(blow.by_cloud)],
        [f"engine {name}: begun, and whole or told", f"{blow.told} of {blow.begun}"],
        [f"engine {name}: local again, of which loading", f"{blow.back_s:.1f} s, {blow.load_s:.1f} s"],
    ]
    if blow.noticed_s is not None:
        rows.append([f"engine {name}: noticed, stall limit", f"{blow.noticed_s:.1f} s, {blow.limit_s:g} s"])
    return rows


def _rows_of_outage(outage: Outage) -> list[list[str]]:
    name = f"provider {outage.name}"
    failures = "" if outage.failures is None else f", {outage.failures} failures"
    served = f"{outage.served} of {outage.requests} ({outage.served_percent:.2f} %)"
    rows = [
        [f"{name}: served", f"{served}, {outage.begun} had begun there"],
        [f"{name}: breaker open after", f"{outage.opened_s:.2f} s{failures}"],
        [f"{name}: called again after", f"{outage.back_s:.2f} s"],
    ]
    if outage.by_error:
        said = ", ".join(f"{count} x {error}" for error, count in outage.by_error.items())
        rows.append([f"{name}: not served", said])
    return rows


def _longest(pause: Pause | None) -> str:
    if pause is None:
        return "the longest under 20 ms"
    ran = "" if pause.ran_s is None else f", computing for {1000 * pause.ran_s:.0f} ms of it"
    return f"the longest {1000 * pause.pause_s:.0f} ms{ran}"


def run(arguments: argparse.Namespace) -> int:
    """Starts all of it, breaks it, reports, and gives the exit status."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        raise CannotRun("started under nohup: a node that is started so never reloads, as its operator does here")
    requests = arguments.requests or (QUICK_REQUESTS if arguments.quick else FULL_REQUESTS)
    plan = Plan(
        requests=requests,
        kills=1 if arguments.quick else 2,
        rate_per_s=10.0 if arguments.quick else 20.0,
        saturated_s=5.0 if arguments.quick else 20.0,
        seed=arguments.seed,
        quick=arguments.quick,
        parts=tuple(arguments.only or PARTS),
    )
    machine = describe_machine()
    print(machine, flush=True)
    with tempfile.TemporaryDirectory(prefix="spillway-bench-") as directory:
        try:
            found = asyncio.run(measure(plan, Path(directory)))
        except CannotRun:
            print(Path(directory, "node.log").read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        if arguments.log:
            arguments.log.write_bytes(Path(directory, "node.log").read_bytes())
    print(f"\n{report(found)}\n")
    if found.campaign is not None:
        print(f"errors: {found.campaign.by_error}")
        for example in found.campaign.examples[:5]:
            print(example, file=sys.stderr)
    figures = {"bench": "faults", "plan": asdict(plan), "found": asdict(found)}
    return finish(bars(found), check=arguments.check, json_path=arguments.json, machine=machine, figures=figures)


def main() -> int:
    """Reads the options; 0 done, 1 a bar was missed (with --check), 2 the bench cannot run here."""
    parser = options.parser("Thousands of requests while providers and engine fail in every way there is.")
    parser.add_argument("--requests", type=int, metavar="N", help="of the campaign (default: 10,000; --quick: 800)")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of requests and faults (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="also keep the node's log")
    arguments = parser.parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
