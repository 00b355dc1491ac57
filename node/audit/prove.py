"""`spillway audit prove`: canaries along every pinned path, under everything that makes a node want to send away.

What arrives at the cloud is read there, at the emulator, and not asked of the node. A canary that may leave goes with
the others under each condition and has to arrive: the check can fail.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path as Folder
from typing import Any, Final

from node.audit.canaries import BY_MODEL, BY_SETTINGS, CONTROL, MODEL, Canary, Path, canaries, paths
from node.audit.isolation import Isolation
from node.audit.proving_ground import ProvingGround, proving_ground
from node.progress import Progress
from node.settings import Settings

_SETTLE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What is the matter while the canaries are sent: `count` along each path, all at once."""

    name: str
    count: int = 6
    wishes: Mapping[str, Any] = field(default_factory=dict)
    routing: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    kills_engine: bool = False


_LATE: Final = {"ttft_budget_ms": 1}
CONDITIONS: Final = (
    Condition(name="calm", count=3),
    Condition(name="cache on", count=3, wishes={"temperature": 0, "cache": True}, repeats=2),
    Condition(name="queue full", count=18, routing={"max_queue_depth": 1}, wishes={"ttft_budget_ms": 200}),
    Condition(name="budget late", wishes=_LATE),
    Condition(name="hedging on", routing={"hedge_share": 0.5}, wishes={"ttft_budget_ms": 500}),
    # So patient that they are still there when the engine is back, over everything that happens meanwhile.
    Condition(name="engine dead", kills_engine=True, routing={"max_wait_s": 180}),
    Condition(
        name="cloud in error",
        wishes=_LATE,
        switches={"error_503": {"probability": 0.3}, "reset_mid_stream": {"probability": 0.3}, "flapping": True},
    ),
)


@dataclass(slots=True)
class Tally:
    """What became of the canaries of one condition."""

    sent: int = 0
    took_s: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    leaked: list[Canary] = field(default_factory=list)
    controls: int = 0
    controls_arrived: int = 0

    @property
    def holds(self) -> bool:
        """Nothing leaked, and it would have been seen."""
        return not self.leaked and self.controls_arrived > 0


def run(settings: Settings, isolation: Isolation | str) -> int:
    """Prove it, and print what was seen; 0 if nothing leaked. `isolation` is a text where packets cannot be counted."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="spillway-prove-") as folder:
        tallies = asyncio.run(_campaign(settings, Folder(folder)))
    sent, leaked = sum(each.sent for each in tallies), sum(len(each.leaked) for each in tallies)
    holds = all(each.holds for each in tallies)
    print()
    print(f"{sent} pinned canaries sent, {leaked} arrived at the cloud; took {time.monotonic() - began_s:.0f} s")
    if isinstance(isolation, str):
        print(f"packets beyond loopback: not counted: {isolation}")
    else:
        seen = isolation.packets()
        print(f"packets beyond loopback: {len(seen)}" + (f", to {', '.join(sorted(set(seen)))}" if seen else ""))
        if not isolation.would_see():
            print("the count proves nothing: a packet that was sent on purpose was not seen")
            holds = False
        holds = holds and not seen
    print("held" if holds else "NOT HELD")
    return 0 if holds else 1


async def _campaign(settings: Settings, folder: Folder) -> list[Tally]:
    word = f"word{secrets.token_hex(6)}"
    print("starting a node with the demo model, and an emulator for its cloud", flush=True)
    async with AsyncExitStack() as stack:
        with Progress("loading the demo model"):
            ground = await stack.enter_async_context(proving_ground(settings, word, folder))
        ways = paths(settings.privacy.content_rules, word)
        print(f"pinned by: {', '.join(way.name for way in (*ways, BY_MODEL, BY_SETTINGS))}\n")
        columns = ("sent", "served here", "refused", "arrived", "controls arrived")
        print(f"{'condition':<16}" + "".join(f"{each:>18}" for each in columns), flush=True)
        sent: list[Canary] = []
        tallies = []
        for condition in CONDITIONS:
            with Progress(f"{condition.name}: sending"):
                tally = await _under(condition, ground, ways, sent)
            tallies.append(tally)
            refused = tally.answers["refused"]
            controls = f"{tally.controls_arrived} of {tally.controls}"
            cells = (tally.sent, tally.answers.total() - refused, refused, len(tally.leaked), controls)
            print(f"{condition.name:<16}" + "".join(f"{each:>18}" for each in cells), flush=True)
            for canary in tally.leaked:
                print(f"  LEAKED: pinned by {canary.path.name}, {canary.token}", flush=True)
    # What came late, up to the end of the node.
    known = {canary.token for tally in tallies for canary in tally.leaked}
    late = [each for each in sent if not each.path.may_leave and each.token not in known and _arrived(ground, each)]
    tallies[-1].leaked += late
    for canary in late:
        print(f"  LEAKED later: pinned by {canary.path.name}, {canary.token}", flush=True)
    return tallies


async def _under(condition: Condition, ground: ProvingGround, ways: tuple[Path, ...], sent: list[Canary]) -> Tally:
    """Send along each path, each under the settings that it needs, and wait for every answer."""
    tally = Tally()
    under_way: list[asyncio.Task[None]] = []
    ground.cloud.switches.replace(condition.switches)
    phases: tuple[tuple[dict[str, Any], tuple[Path, ...]], ...] = (
        ({}, (CONTROL, *ways)),
        ({"pinned_models": [MODEL]}, (BY_MODEL,)),
        ({"residency": "premises"}, (BY_SETTINGS,)),
    )
    batch: list[Canary] = []
    for privacy, of_phase in phases:
        await ground.change({"routing": condition.routing, "privacy": privacy})
        of_batch = [each for way in of_phase for each in canaries(way, condition.count, **condition.wishes)]
        batch += of_batch
        tasks = [asyncio.create_task(_send(each, ground, tally, condition.repeats)) for each in of_batch]
        under_way += tasks
        if not condition.kills_engine:
            await asyncio.gather(*tasks)
        elif not privacy:
            await asyncio.sleep(0.1)
            ground.kill_engine()
            again = [each for way in of_phase for each in canaries(way, condition.count, **condition.wishes)]
            batch += again
            under_way += [asyncio.create_task(_send(each, ground, tally, condition.repeats)) for each in again]
        # Pinned by the settings is what comes while they are in force: all of it has to be in before they change.
        await ground.until_inside(under_way)
        await asyncio.sleep(_SETTLE_S if condition.kills_engine else 0)
    await ground.change({"routing": condition.routing})
    await asyncio.gather(*under_way)
    if condition.kills_engine:
        await ground.until_engine_is_ready()
    await asyncio.sleep(_SETTLE_S)
    for canary in batch:
        if canary.path.may_leave:
            tally.controls += 1
            tally.controls_arrived += _arrived(ground, canary)
        else:
            tally.sent += 1
            if _arrived(ground, canary):
                tally.leaked.append(canary)
    sent += batch
    return tally


async def _send(canary: Canary, ground: ProvingGround, tally: Tally, repeats: int) -> None:
    for _ in range(repeats):
        by = await ground.answer(canary)
        if not canary.path.may_leave:
            tally.answers[by] += 1


def _arrived(ground: ProvingGround, canary: Canary) -> bool:
    return canary.token.encode() in ground.cloud.heard
