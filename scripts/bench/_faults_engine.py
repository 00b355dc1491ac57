"""The engine dies, or hangs, under load; and it does neither for an hour of saturated steps."""

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from _faults_clients import HERE, Asked, Heard, ask, session
from _faults_judge import Evidence, gather, judge
from _faults_setup import KEY, STALL_S, World
from _harness.process import CannotRun
from _harness.stats import percentile

from node.local.supervision import Event, Progress, Rules, patience
from node.routing.values import EngineState

_BEFORE_S, _AFTER_S = 3.0, 2.0
_PINNED_STREAMS = 2
_LONG = 3000
_BACK_WITHIN_S = 180.0
_SATURATED_STREAMS = 8
_LOOKS_TO_SUSPECT = 4  # as the supervisor looks


@dataclass(frozen=True)
class Blow:
    """One blow to the engine under load. Seconds from the blow, unless said otherwise.

    `unanswered` are the spillable requests that had no first byte when it fell, or came while there was no engine;
    `rescued` those of them that were answered whole. `begun` had begun in the engine: `told` of them were whole, or
    ended with an error that says so. `noticed_s` is None where nobody asked when the node noticed.
    """

    unanswered: int
    rescued: int
    by_cloud: int
    begun: int
    told: int
    wrong: int
    noticed_s: float | None
    limit_s: float | None
    back_s: float
    load_s: float
    first_load_s: float

    @property
    def rescued_percent(self) -> float | None:
        """Of those that had not been answered."""
        return 100 * self.rescued / self.unanswered if self.unanswered else None

    @property
    def overtime_s(self) -> float:
        """By how much longer than its load the engine was away."""
        return self.back_s - self.load_s


@dataclass
class _Load:
    heard: list[Heard] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


async def blow(world: World, number: signal.Signals, *, rate_per_s: float, seed: int) -> Blow:
    """Send `number` to the engine's core while more arrives than it can take, until it serves pinned work again."""
    node = world.node
    await node.engine_ready(HERE, _BACK_WITHIN_S)
    old, life = node.engine(), await node.supervision(HERE)
    fresh = Rules().fresh_factor if life["since_s"] + _BEFORE_S < Rules().fresh_s else 1.0
    name = f"{number.name}-{seed}"
    noticed_s: float | None = None
    async with session() as clients, _under_load(world, clients, name, rate_per_s) as load:
        await asyncio.sleep(_BEFORE_S)
        os.kill(old[0].pid, number)
        fell_s = time.monotonic()
        probe = asyncio.create_task(_until_local(world, clients, name))
        if number is signal.SIGSTOP:
            while (await node.supervision(HERE))["hangs"] == life["hangs"]:
                if time.monotonic() - fell_s > _BACK_WITHIN_S:
                    raise CannotRun("the node does not notice that its engine hangs")
                await asyncio.sleep(0.1)
            noticed_s = time.monotonic() - fell_s
        back_s = await probe - fell_s
        await asyncio.sleep(_AFTER_S)
    await node.at_rest(60.0)
    if left := [process for process in old if process.find()]:
        raise CannotRun(f"processes of the engine that was ended are still there: {left}")
    evidence = gather(world.logs(), world.bills())
    loads_s = node.load_times_s(HERE)
    return told(
        load.heard,
        evidence,
        fell_s=fell_s,
        back_s=back_s,
        noticed_s=noticed_s,
        limit_s=STALL_S * fresh if number is signal.SIGSTOP else None,
        load_s=loads_s[-1],
        first_load_s=loads_s[0],
    )


def told(
    heard: Sequence[Heard],
    evidence: dict[str, Evidence],
    *,
    fell_s: float,
    back_s: float,
    noticed_s: float | None,
    limit_s: float | None,
    load_s: float,
    first_load_s: float,
) -> Blow:
    """What the clients heard, counted by what had become of each when the blow fell at `fell_s`."""
    nothing = Evidence()
    free = [each for each in heard if not each.asked.pinned]
    unanswered = [
        each
        for each in free
        if each.began_s < fell_s + back_s
        and each.ended_s > fell_s
        and not (each.first_s is not None and each.first_s < fell_s)
    ]
    begun = [
        each
        for each in heard
        if each.backend == "local" and each.first_s is not None and each.first_s < fell_s < each.ended_s
    ]
    return Blow(
        unanswered=len(unanswered),
        rescued=sum(each.whole for each in unanswered),
        by_cloud=sum(each.whole and each.backend != "local" for each in unanswered),
        begun=len(begun),
        told=sum(each.whole or (each.done and each.error is not None) for each in begun),
        wrong=sum(bool(judge(each, evidence.get(each.asked.marker, nothing), KEY)) for each in heard),
        noticed_s=noticed_s,
        limit_s=limit_s,
        back_s=back_s,
        load_s=load_s,
        first_load_s=first_load_s,
    )


@asynccontextmanager
async def _under_load(
    world: World, clients: aiohttp.ClientSession, name: str, rate_per_s: float
) -> AsyncIterator[_Load]:
    """Two endless pinned streams, and spillable requests at a steady rate, until the end of the block."""
    load = _Load()

    async def one(asked: Asked) -> None:
        load.heard.append(await ask(clients, world.node.url, asked))

    async def arrive() -> None:
        for number in itertools.count():
            wanted = Asked(f"{name}-{number:04d}", HERE, pinned=False, stream=number % 2 == 0)
            load.tasks.append(asyncio.create_task(one(wanted)))
            await asyncio.sleep(1 / rate_per_s)

    for number in range(_PINNED_STREAMS):
        wanted = Asked(f"{name}-long-{number}", HERE, pinned=True, stream=True, max_tokens=_LONG, ignore_eos=True)
        load.tasks.append(asyncio.create_task(one(wanted)))
    arriving = asyncio.create_task(arrive())
    try:
        yield load
    finally:
        arriving.cancel()
        await asyncio.gather(*load.tasks)


async def _until_local(world: World, clients: aiohttp.ClientSession, name: str) -> float:
    """When a pinned request was first answered; one after the other is sent, as an application would."""
    give_up_s = time.monotonic() + _BACK_WITHIN_S
    for number in itertools.count():
        wanted = Asked(f"{name}-probe-{number}", HERE, pinned=True, stream=False, max_tokens=4)
        heard = await ask(clients, world.node.url, wanted)
        if heard.whole:
            return heard.ended_s
        if heard.ended_s > give_up_s:
            raise CannotRun(f"no local answer: {heard}")
        await asyncio.sleep(0.2)
    raise AssertionError


@dataclass(frozen=True)
class Hour:
    """An hour of looks at an engine whose steps take what they took in a saturated stretch.

    `steps` were measured, `longest_step_s` is the longest of them; `suspected` and `killed` are what the supervision
    made of the hour, `strict` with the stall limit of this bench and else with the default one.
    """

    steps: int
    median_step_s: float
    longest_step_s: float
    hours_steps: int
    suspected: int
    killed: int
    suspected_strict: int
    killed_strict: int


async def saturated_gaps_s(world: World, seconds: float) -> list[float]:
    """Seconds between one step of a full engine and the next, as pinned streams show them."""
    ends_s = time.monotonic() + seconds
    at_s: list[float] = []
    async with session() as clients:

        async def stream(number: int) -> None:
            for turn in itertools.count():
                wanted = Asked(f"full-{number}-{turn}", HERE, True, True, max_tokens=200, ignore_eos=True)
                heard = await ask(clients, world.node.url, wanted)
                if not heard.whole:
                    raise CannotRun(f"the engine does not answer: {heard}")
                at_s.extend(heard.content_at_s)
                if time.monotonic() > ends_s:
                    return

        await asyncio.gather(*(stream(number) for number in range(_SATURATED_STREAMS)))
    at_s.sort()
    # What comes within a millisecond comes from one step.
    gaps_s = [after - before for before, after in itertools.pairwise(at_s)]
    return [gap_s for gap_s in gaps_s if gap_s > 0.001]


def hour_of(gaps_s: Sequence[float], strict: Rules, seed: int) -> Hour:
    """An hour drawn from `gaps_s`, watched by the default rules and by `strict` ones."""
    suspected, killed = _watched(gaps_s, Rules(), seed)
    suspected_strict, killed_strict = _watched(gaps_s, strict, seed)
    return Hour(
        steps=len(gaps_s),
        median_step_s=percentile(gaps_s, 50) or 0.0,
        longest_step_s=max(gaps_s),
        hours_steps=round(3600 / (sum(gaps_s) / len(gaps_s))),
        suspected=suspected,
        killed=killed,
        suspected_strict=suspected_strict,
        killed_strict=killed_strict,
    )


def _watched(gaps_s: Sequence[float], rules: Rules, seed: int) -> tuple[int, int]:
    """How often an engine that is busy for an hour comes under suspicion, and is killed."""
    chance = random.Random(seed)
    allowed = patience(rules, rules.fresh_s, None)
    look_s = min(1.0, rules.stall_s * rules.suspect_share / _LOOKS_TO_SUSPECT)
    progress, state = Progress(0, 0.0), EngineState.READY
    steps, next_step_s, now_s = 0, chance.choice(gaps_s), 0.0
    seen = {Event.STALLED: 0, Event.HUNG: 0, Event.MOVED: 0}
    while now_s < 3600.0:
        now_s += look_s
        while next_step_s <= now_s:
            steps += 1
            next_step_s += chance.choice(gaps_s)
        progress = progress.look(steps, now_s, busy=True, longest_look_s=2 * look_s)
        event = progress.verdict(state, allowed)
        if event is not None:
            seen[event] += 1
            state = EngineState.SUSPECT if event is Event.STALLED else EngineState.READY
    return seen[Event.STALLED], seen[Event.HUNG]
