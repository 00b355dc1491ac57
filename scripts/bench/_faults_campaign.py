"""The campaign: thousands of requests while every provider misbehaves in every way, and the engine is killed."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from _faults_clients import ELSEWHERE, HERE, Asked, Heard, ask, crowd, session
from _faults_judge import Evidence, Wrong, gather, judge
from _faults_setup import KEY, World
from _faults_weather import weather
from _harness.stats import percentile

_CONNECTIONS = 40
_EPISODE = 40
_LONGEST_REST_S = 2.0
"""How long a client that was refused waits at most before it asks again: as long as it was told, but no longer."""
_KILL_AT = (0.3, 0.6)
"""When the engine is killed, as shares of the requests sent."""


@dataclass(frozen=True)
class Campaign:
    """What came of it. `attempts` are calls that arrived at providers, `called` the requests they were made for."""

    requests: int
    seconds: float
    whole: int
    refused: int
    errors_before: int
    errors_after: int
    left: int
    by_backend: dict[str, int]
    by_error: dict[str, int]
    wrong: dict[str, int]
    examples: tuple[str, ...]
    attempts: int
    called: int
    switches: int
    kills: int
    longest_s: float
    p99_s: float | None

    @property
    def attempts_per_request(self) -> float | None:
        """Of the requests for which a provider was called at all."""
        return self.attempts / self.called if self.called else None

    def count(self, wrong: Wrong) -> int:
        """How many answers were wrong in that way."""
        return self.wrong.get(wrong, 0)


async def campaign(world: World, seed: int, count: int, kills: int) -> Campaign:
    """Send `count` seeded requests over busy connections, and judge every answer."""
    began_s = time.monotonic()
    heard, killed = await _send_all(world, seed, crowd(seed, count), kills)
    seconds = time.monotonic() - began_s
    await world.calm()
    await world.node.at_rest(60.0)
    logs, bills = world.logs(), world.bills()
    evidence = gather(logs, bills)
    hit = {record["switch"] for log in logs.values() for record in log} - {None}
    return summary(heard, evidence, seconds=seconds, switches=len(hit), kills=killed)


async def asked_again(world: World, count: int, tries: int) -> list[Heard]:
    """What `count` clients hear in the end who ask one after the other, and again as they are told, `tries` times."""
    heard = []
    async with session() as clients:
        for number in range(count):
            wanted = Asked(f"again-{number}", HERE if number % 2 else ELSEWHERE, number % 4 == 1, number % 3 == 0)
            answer = await ask(clients, world.node.url, wanted)
            for _ in range(tries - 1):
                if answer.whole:
                    break
                await asyncio.sleep(_rest_s(answer))
                answer = await ask(clients, world.node.url, wanted)
            heard.append(answer)
    return heard


def _rest_s(refused: Heard) -> float:
    told = refused.retry_after or ""
    return min(float(told), _LONGEST_REST_S) if told.isdecimal() else _LONGEST_REST_S


def summary(
    heard: Sequence[Heard], evidence: dict[str, Evidence], *, seconds: float, switches: int, kills: int
) -> Campaign:
    """Every answer judged, and all of them counted."""
    nothing = Evidence()
    judged = [(each, judge(each, evidence.get(each.asked.marker, nothing), KEY)) for each in heard]
    called = [evidence[each.asked.marker].arrivals for each in heard if each.asked.marker in evidence]
    failed = [each for each in heard if each.error is not None]
    stayed = [each.ended_s - each.began_s for each in heard if not each.left]
    return Campaign(
        requests=len(heard),
        seconds=seconds,
        whole=sum(each.whole for each in heard),
        refused=sum(each.status in (429, 503) for each in failed),
        errors_before=sum(each.status not in (200, 429, 503) for each in failed),
        errors_after=sum(each.status == 200 for each in failed),
        left=sum(each.left for each in heard),
        by_backend=dict(Counter(each.backend for each in heard if each.whole)),
        by_error=dict(Counter(str(each.error["code"]) for each in failed if each.error is not None).most_common()),
        wrong=dict(Counter(each.value for _, wrong in judged for each in wrong)),
        examples=tuple(
            f"{', '.join(wrong)}: {each} {evidence.get(each.asked.marker)}" for each, wrong in judged if wrong
        ),
        attempts=sum(called),
        called=len(called),
        switches=switches,
        kills=kills,
        longest_s=max(stayed, default=0.0),
        p99_s=percentile(stayed, 99),
    )


async def _send_all(world: World, seed: int, wanted: Sequence[Asked], kills: int) -> tuple[list[Heard], int]:
    """What every client heard, and how often the engine was killed."""
    episodes = weather(seed, tuple(world.clouds))
    kill_at = [int(len(wanted) * share) for share in _KILL_AT[:kills]]
    killed = 0
    heard: list[Heard] = []
    turn = asyncio.Lock()
    sent: Iterator[tuple[int, Asked]] = iter(enumerate(wanted))

    async def next_one() -> Asked | None:
        nonlocal killed
        async with turn:
            index, asked = next(sent, (None, None))
            if index is None:
                return None
            if index % _EPISODE == 0:
                armed = next(episodes).armed
                for name, switches in armed.items():
                    await world.clouds[name].arm(switches)
                await world.reload_if_isolated()
            # Where there is none just then, the next one: else nothing would be tried of what comes after a death.
            if killed < len(kill_at) and index >= kill_at[killed] and world.node.kill_engine():
                killed += 1
            return asked

    async with session() as clients:

        async def client() -> None:
            while (asked := await next_one()) is not None:
                answer = await ask(clients, world.node.url, asked)
                heard.append(answer)
                if answer.status in (429, 503):
                    await asyncio.sleep(_rest_s(answer))

        await asyncio.gather(*(client() for _ in range(_CONNECTIONS)))
    return heard, killed
