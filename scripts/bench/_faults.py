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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _faults_campaign import Campaign, campaign
from _faults_clients import HERE
from _faults_engine import Blow, Hour, blow, hour_of, saturated_gaps_s
from _faults_judge import Wrong
from _faults_node import Footprint
from _faults_providers import Outage, failing, killed
from _faults_setup import HEALTH_INTERVAL_S, STALL_S, world
from _harness import options
from _harness.process import CannotRun
from _harness.report import Bar, describe_machine, finish, number, table

from node.local.supervision import Rules

QUICK_REQUESTS, FULL_REQUESTS = 800, 10_000
_REST_S, _LONG_REST_S = 10.0, 60.0


@dataclass(frozen=True)
class Plan:
    """How much of it."""

    requests: int
    kills: int
    rate_per_s: float
    saturated_s: float
    seed: int
    quick: bool


@dataclass(frozen=True)
class Found:
    """Everything that was measured. `pauses_s` is the longest pause of the node's loop in each part."""

    campaign: Campaign
    killed: Blow
    stopped: Blow
    hour: Hour
    outages: tuple[Outage, ...]
    before: Footprint
    after: Footprint
    leaked: tuple[str, ...]
    pauses_s: dict[str, float]
    long_pauses: int


async def measure(plan: Plan, folder: Path) -> Found:
    """Runs every part, one after the other, on the same node."""
    async with world(folder, plan.seed) as made:
        node = made.node
        before, descriptors = await node.footprint(), node.descriptors()
        began = await node.stats()
        watching = asyncio.create_task(node.watch())
        pauses_s: dict[str, float] = {}
        parts: dict[str, Any] = {}
        for name, part in (
            ("campaign", lambda: campaign(made, plan.seed, plan.requests, plan.kills)),
            ("provider killed", lambda: killed(made, plan.rate_per_s)),
            ("provider failing", lambda: failing(made, plan.rate_per_s)),
            ("engine stopped", lambda: blow(made, signal.SIGSTOP, rate_per_s=plan.rate_per_s, seed=plan.seed)),
            ("engine killed", lambda: blow(made, signal.SIGKILL, rate_per_s=plan.rate_per_s, seed=plan.seed)),
            ("engine full", lambda: saturated_gaps_s(made, plan.saturated_s)),
        ):
            if name.startswith("engine"):
                await node.engine_ready(HERE, 120.0)
            since_s = time.monotonic()
            parts[name] = await part()
            await node.stats()
            pauses_s[name] = node.pauses.longest_s(since_s, time.monotonic())
            print(f"{name}: {time.monotonic() - since_s:.0f} s", flush=True)
        await node.engine_ready(HERE, 120.0)
        watching.cancel()
        ended = await node.stats()
        after = await node.footprint_at_rest(before, _REST_S if plan.quick else _LONG_REST_S)
        more = after.beyond(before)
        leaked = [f"{count} {what}" for what, count in more.items()]
        if "descriptors" in more:
            leaked += _new(descriptors, node.descriptors())
        return Found(
            campaign=parts["campaign"],
            killed=parts["engine killed"],
            stopped=parts["engine stopped"],
            hour=hour_of(parts["engine full"], Rules(stall_s=STALL_S), plan.seed),
            outages=(parts["provider killed"], parts["provider failing"]),
            before=before,
            after=after,
            leaked=tuple(leaked),
            pauses_s=pauses_s,
            long_pauses=ended["loop"]["pauses_over_50_ms"] - began["loop"]["pauses_over_50_ms"],
        )


def _new(before: Sequence[str], after: Sequence[str]) -> list[str]:
    left = list(before)
    new = []
    for each in after:
        if each in left:
            left.remove(each)
        elif "/ledger.db" not in each:
            new.append(each.partition(":[")[0] if each.startswith(("socket", "pipe")) else each)
    return [f"{count} x {what}" for what, count in Counter(new).items()]


def bars(found: Found) -> list[Bar]:
    """The promises of this bench."""
    told = found.campaign
    made = [Bar(f"{wrong}", told.count(wrong), 0, "requests", at_least=False) for wrong in Wrong]
    leaks = found.after.beyond(found.before)
    made += [
        Bar(f"leaked {what}", leaks.get(what, 0), 0, what, at_least=False)
        for what in asdict(found.before)
        if what != "pooled"
    ]
    made.append(Bar("attempts per request", told.attempts_per_request, 1.2, "attempts", at_least=False))
    for name, each in (("killed", found.killed), ("stopped", found.stopped)):
        made += [
            Bar(f"engine {name}: unanswered spillable requests served", each.rescued_percent, 99, "%", at_least=True),
            Bar(
                f"engine {name}: begun streams that were not told", each.begun - each.told, 0, "streams", at_least=False
            ),
            Bar(f"engine {name}: wrong answers", each.wrong, 0, "requests", at_least=False),
        ]
    made.append(Bar("engine killed: back after its load time plus", found.killed.overtime_s, 5, "s", at_least=False))
    stopped = found.stopped
    assert stopped.noticed_s is not None
    assert stopped.limit_s is not None
    made += [
        Bar(
            "engine stopped: noticed after the stall limit plus",
            stopped.noticed_s - stopped.limit_s,
            5,
            "s",
            at_least=False,
        ),
        Bar("healthy engine killed in an hour of full steps", found.hour.killed, 0, "times", at_least=False),
        Bar("the same with this bench's stall limit", found.hour.killed_strict, 0, "times", at_least=False),
    ]
    for outage in found.outages:
        made += [
            Bar(f"provider {outage.name}: served by the others", outage.served_percent, 99.5, "%", at_least=True),
            Bar(f"provider {outage.name}: breaker open after", outage.opened_s, 2, "s", at_least=False),
            Bar(f"provider {outage.name}: wrong answers", outage.wrong, 0, "requests", at_least=False),
        ]
        if outage.name == "killed":
            made.append(
                Bar(
                    "provider killed: called again after its return",
                    outage.back_s,
                    HEALTH_INTERVAL_S,
                    "s",
                    at_least=False,
                )
            )
    made.append(Bar("pauses of the event loop over 50 ms", found.long_pauses, 0, "pauses", at_least=False))
    return made


def report(found: Found) -> str:
    """One table of everything."""
    told, dead, hung, hour = found.campaign, found.killed, found.stopped, found.hour
    rows = [
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
        ["leaked", ", ".join(found.leaked) or "nothing"],
    ]
    for name, each in (("SIGKILL", dead), ("SIGSTOP", hung)):
        rows += [
            [f"engine {name}: unanswered and spillable, served", f"{each.rescued} of {each.unanswered}"],
            [f"engine {name}: of those by the cloud", str(each.by_cloud)],
            [f"engine {name}: begun, and whole or told", f"{each.told} of {each.begun}"],
            [f"engine {name}: local again, of which loading", f"{each.back_s:.1f} s, {each.load_s:.1f} s"],
        ]
        if each.noticed_s is not None:
            rows.append([f"engine {name}: noticed, stall limit", f"{each.noticed_s:.1f} s, {each.limit_s:g} s"])
    rows += [
        [
            "an hour of full steps: steps, median, longest",
            f"{hour.hours_steps:,}, {1000 * hour.median_step_s:.1f} ms, {hour.longest_step_s:.3f} s",
        ],
        ["suspected, killed", f"{hour.suspected}, {hour.killed}"],
        [f"the same with a stall limit of {STALL_S:g} s", f"{hour.suspected_strict}, {hour.killed_strict}"],
    ]
    for outage in found.outages:
        failures = "" if outage.failures is None else f", {outage.failures} failures"
        rows += [
            [
                f"provider {outage.name}: served",
                f"{outage.served} of {outage.requests} ({outage.served_percent:.2f} %), {outage.begun} had begun there",
            ],
            [f"provider {outage.name}: breaker open after", f"{outage.opened_s:.2f} s{failures}"],
            [f"provider {outage.name}: called again after", f"{outage.back_s:.2f} s"],
        ]
    for name, pause_s in found.pauses_s.items():
        rows.append(
            [f"longest pause of the event loop, {name}", f"{1000 * pause_s:.0f} ms" if pause_s else "under 20 ms"]
        )
    return table(["what", "measured"], rows)


def run(arguments: argparse.Namespace) -> int:
    """Starts all of it, breaks it, reports, and gives the exit status."""
    requests = arguments.requests or (QUICK_REQUESTS if arguments.quick else FULL_REQUESTS)
    plan = Plan(
        requests=requests,
        kills=1 if arguments.quick else 2,
        rate_per_s=10.0 if arguments.quick else 20.0,
        saturated_s=5.0 if arguments.quick else 20.0,
        seed=arguments.seed,
        quick=arguments.quick,
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
    parser.add_argument("--log", type=Path, metavar="FILE", help="also keep the node's log")
    arguments = parser.parse_args()
    return options.main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
