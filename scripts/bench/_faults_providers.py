"""One provider of three goes down, and comes back."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from _faults_clients import ELSEWHERE, Asked, Heard, ask, session
from _faults_judge import Evidence, gather, judge
from _faults_node import until
from _faults_setup import KEY, World

_BEFORE_S, _DOWN_S, _AFTER_S = 2.0, 3.0, 2.0
_BACK_WITHIN_S = 60.0
_WELL_WITHIN_S = 90.0  # a provider that has asked for a long pause is left alone for a minute
_LOOK_S = 0.02


@dataclass(frozen=True)
class Outage:
    """One provider down while others are well. `opened_s` and `back_s` run from its going and its coming back.

    `failures` are the calls that arrived there and were failed until the breaker was seen open (None: it could not be
    reached, and counted none). `served` are whole answers of `requests`, those left out that had begun at the provider
    when it died: no other may go on with them. `by_error` are the errors of those that were not served.
    """

    name: str
    requests: int
    served: int
    begun: int
    opened_s: float
    failures: int | None
    back_s: float
    wrong: int
    by_error: dict[str, int]

    @property
    def served_percent(self) -> float:
        """Of the requests that another provider could answer."""
        return 100 * self.served / self.requests


async def killed(world: World, rate_per_s: float) -> Outage:
    """The provider's process is killed, and started again."""
    cloud = world.clouds["north"]

    async def down() -> None:
        await asyncio.to_thread(cloud.kill)

    async def up() -> None:
        await asyncio.to_thread(cloud.start)

    return await _outage(world, "killed", rate_per_s, down, up)


async def failing(world: World, rate_per_s: float) -> Outage:
    """Every call to the provider fails with a 503."""
    cloud = world.clouds["north"]
    return await _outage(
        world, "failing", rate_per_s, lambda: cloud.arm({"error_503": {"probability": 1.0}}), lambda: cloud.arm({})
    )


async def _outage(
    world: World, name: str, rate_per_s: float, down: Callable[[], Awaitable[None]], up: Callable[[], Awaitable[None]]
) -> Outage:
    node = world.node
    heard: list[Heard] = []
    tasks: list[asyncio.Task[None]] = []

    async def available() -> bool:
        return bool((await node.stats())["providers"]["north"]["available"])

    async def away() -> bool:
        return not await available()

    async def all_are_well() -> bool:
        return all(each["available"] for each in (await node.stats())["providers"].values())

    await until(all_are_well, _WELL_WITHIN_S, "not every provider is available")
    async with session() as clients:

        async def one(asked: Asked) -> None:
            heard.append(await ask(clients, node.url, asked))

        async def arrive() -> None:
            for number in itertools.count():
                wanted = Asked(f"outage-{name}-{number:04d}", ELSEWHERE, pinned=False, stream=number % 2 == 0)
                tasks.append(asyncio.create_task(one(wanted)))
                await asyncio.sleep(1 / rate_per_s)

        arriving = asyncio.create_task(arrive())
        await asyncio.sleep(_BEFORE_S)
        went_s = time.monotonic()
        await down()
        gone_s = time.monotonic()
        await until(away, 10.0, "the breaker does not open", every_s=_LOOK_S)
        opened_s = time.monotonic() - went_s
        failures = None if name == "killed" else _failures(world)
        await asyncio.sleep(_DOWN_S)
        await up()
        came_s = time.monotonic()
        await until(available, _BACK_WITHIN_S, "the provider is not called again", every_s=_LOOK_S)
        back_s = time.monotonic() - came_s
        await asyncio.sleep(_AFTER_S)
        arriving.cancel()
        await asyncio.gather(*tasks)
    await node.at_rest(30.0)
    return told(world, name, heard, went_s, gone_s, opened_s, failures, back_s)


def told(
    world: World,
    name: str,
    heard: Sequence[Heard],
    went_s: float,
    gone_s: float,
    opened_s: float,
    failures: int | None,
    back_s: float,
) -> Outage:
    """What the clients heard of it."""
    evidence = gather(world.logs(), world.bills())
    begun = [
        each
        for each in heard
        if name == "killed" and each.backend == "north" and each.began_s < gone_s and went_s < each.ended_s
        and each.first_s is not None and each.first_s <= gone_s and not each.whole
    ]  # fmt: skip
    rest = [each for each in heard if each not in begun]
    return Outage(
        name=name,
        requests=len(rest),
        served=sum(each.whole for each in rest),
        begun=len(begun),
        opened_s=opened_s,
        failures=failures,
        back_s=back_s,
        # What has begun there when it dies is on no bill; that it broke off must be said.
        wrong=sum(not (each.done and each.error is not None) for each in begun)
        + sum(bool(judge(each, evidence.get(each.asked.marker, Evidence()), KEY)) for each in rest),
        by_error=dict(Counter(_failure(each) for each in rest if not each.whole)),
    )


def _failure(heard: Heard) -> str:
    said = heard.broken if heard.error is None else heard.error["code"]
    return f"{heard.status} {said} ({heard.backend}, {'stream' if heard.asked.stream else 'document'})"


def _failures(world: World) -> int:
    return sum(
        record["switch"] == "error_503" and "outage-failing" in record["prompts"][-1]
        for record in world.clouds["north"].emulator.log()
    )
