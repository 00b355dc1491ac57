"""One trace through simulator and live lane, with the same engine in virtual time, gives the same decisions."""

import asyncio
import math
import random
from dataclasses import dataclass
from decimal import Decimal

import pytest

from node.backend import Backend
from node.dispatch.lane import Lane
from node.money import Price
from node.routing.lengths import OutputLengths
from node.routing.policy import OverflowPolicy
from node.routing.profile import EngineProfile, StepModel
from node.routing.ttft import ProviderTtft
from node.routing.values import (
    CloudOption,
    Decision,
    EngineLoad,
    Features,
    Limits,
    Reason,
    Residency,
    Target,
)
from node.simulate.engine import Sequence
from node.simulate.observed import ObservedEngine
from node.simulate.providers import Provider
from node.simulate.replay import Fate, Promise, replay
from node.simulate.values import TraceRequest
from tests.dispatch.virtual_time import VirtualLoop, now_s

CLOUD = Provider(price=Price(Decimal(1), Decimal(4)), ttft_median_s=0.35, ttft_sigma=0.35)
PROFILE = EngineProfile(
    name="made up",
    source="by hand",
    step=StepModel(base_s=0.011, per_decode_s=0.0003, per_prefill_token_s=0.00021),
    max_sequences=8,
    max_batched_tokens=512,
    kv_tokens=16_000,
    context_tokens=4_000,
)
START_S = 1000.0  # of the virtual loop; the trace begins there, so that both reckon with the same numbers
BUDGET_S = 1.0


@dataclass
class Row:
    """What was decided for one request, and when."""

    decided_s: float
    target: Target
    reason: Reason
    ttft_s: float | None = None


class LiveWorld:
    """The live lane with all that surrounds it in a node, in virtual time: clients, an engine that steps, a cloud."""

    def __init__(self, trace: list[TraceRequest], promise: Promise, look_again_s: float) -> None:
        self.trace = trace
        self.promise = promise
        self.observed = ObservedEngine(PROFILE)
        self.simulated, self.observer = self.observed.simulated, self.observed.observer
        self.lengths = OutputLengths()
        self.ttft = ProviderTtft(assumed_s=CLOUD.ttft_median_s * 2)
        self.rows: list[Row | None] = [None] * len(trace)
        self.decisions: dict[int, Decision] = {}
        self.finished: dict[int, asyncio.Future[None]] = {}
        self._option: CloudOption | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.lane = Lane(
            engine=self,
            policy=OverflowPolicy(Limits()),
            cloud_options=lambda failed: (self._cloud(),),
            vram_free_bytes=lambda: None,
            clock=now_s,
            look_again_s=look_again_s,
        )

    async def run(self) -> None:
        """Every client of the trace, to the end of the last answer."""
        await asyncio.gather(*(self._client(index) for index in range(len(self.trace))))

    async def _client(self, index: int) -> None:
        request = self.trace[index]
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        loop.call_at(request.arrival_s, arrived.set_result, None)
        await arrived
        features = self._features(index, request)
        decision = await self.lane.place(features)
        self.decisions[index] = decision
        row = self.rows[index] = Row(now_s(), decision.target, decision.reason)
        if decision.target is Target.CLOUD:
            ttft_s = CLOUD.ttft_s(index)
            await asyncio.sleep(ttft_s)
            self.ttft.add(ttft_s, now_s())
            self._option = None
            row.ttft_s = now_s() - request.arrival_s
            self._promised(index, row.ttft_s)
        elif decision.target is Target.LOCAL:
            self.finished[index] = loop.create_future()
            uncached = max(1, request.prompt_tokens - request.prefix_hit_tokens)
            self.observed.submit(Sequence(index, request.prompt_tokens, uncached, request.output_tokens), now_s())
            self.lane.entered(features.request_id)
            self._arm()
            await self.finished[index]
            self.lengths.learn(request.client, request.output_tokens)
            self.observer.answered(request.output_tokens)
            self.lane.release(features)

    def _features(self, index: int, request: TraceRequest) -> Features:
        return Features(
            request_id=str(index),
            model="simulated",
            residency=Residency.PREMISES if index in self.promise.pinned else Residency.ANY,
            prompt_bytes=4 * request.prompt_tokens,
            prompt_tokens_estimate=request.prompt_tokens,
            prompt_tokens_bound=request.prompt_tokens,
            max_output_tokens=1_000_000,
            choices=1,
            needs=frozenset(),
            prefer_local=False,
            ttft_budget_s=self.promise.ttft_budget_s,
            latency_budget_s=None,
            cost_budget_nano_usd=None,
            arrived_s=request.arrival_s,
            give_up_s=request.arrival_s + 3600.0,
            tenant=request.client,
            cached_tokens_estimate=request.prefix_hit_tokens,
            output_tokens_estimate=self.lengths.expected(request.client),
        )

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.simulated.ends_s is not None:
            self._timer = asyncio.get_running_loop().call_at(self.simulated.ends_s, self._stepped)

    def _stepped(self) -> None:
        """What a report of the engine's does in the node: it teaches, clients go on, the queue is looked at."""
        report = self.observed.step(now_s())
        self._arm()
        for index in report.began:
            row, decision = self.rows[index], self.decisions[index]
            assert row is not None
            row.ttft_s = now_s() - self.trace[index].arrival_s
            self._promised(index, row.ttft_s)
            if decision.predicted_ttft_s is not None:
                took_s = now_s() - row.decided_s
                self.observer.began(predicted_s=decision.predicted_ttft_s, took_s=took_s, queued=False)
            if decision.expected is not None:
                took_s = now_s() - decision.expected.made_at_s
                self.observer.began(predicted_s=decision.expected.ttft_s, took_s=took_s, queued=True)
        for index in report.finished:
            self.finished[index].set_result(None)
        self.lane.moved_on()

    def _promised(self, index: int, ttft_s: float) -> None:
        if index not in self.promise.pinned:
            kept = ttft_s <= self.promise.ttft_budget_s
            decision = self.decisions[index]
            self.observer.lateness.promised(kept=kept, here=decision.target is Target.LOCAL or decision.was_kept)

    def load(self, in_flight: int) -> EngineLoad:
        """The engine as the node sees it."""
        return self.observed.load(in_flight, now_s())

    def leaves(self) -> None:
        """Another one goes to the cloud."""
        self.observer.lateness.leaves()
        self._option = None

    def backend(self) -> Backend:
        """Nobody asks: the clients here go to the engine themselves."""
        raise NotImplementedError

    def _cloud(self) -> CloudOption:
        if self._option is None:
            self._option = CloudOption(
                provider="cloud",
                model="simulated",
                capabilities=frozenset(),
                context_tokens=10**9,
                max_output_tokens=None,
                price=CLOUD.price,
                ttft_high_s=self.ttft.high_s(now_s(), self.observer.lateness.cloud_share),
                ttft_likely_s=self.ttft.likely_s(now_s()),
            )
        return self._option


def made_up(requests: int, per_s: float, *, seed: int) -> list[TraceRequest]:
    """Bursts over a calm stream, from three callers."""
    dice = random.Random(seed)
    at_s, trace = START_S + 0.001, []
    for number in range(requests):
        pace = per_s * (4.0 if number // 40 % 3 == 1 else 0.6)
        at_s += dice.expovariate(pace)
        hit = dice.choice([0, 0, 64])
        trace.append(
            TraceRequest(at_s, dice.randint(80, 1500), dice.randint(1, 120), hit, dice.choice(["a", "b", "c"]))
        )
    return trace


def both(per_s: float, seed: int, look_again_s: float) -> list[tuple[Fate | None, Row | None]]:
    """Every request's row of the simulator, beside that of the live lane."""
    trace = made_up(400, per_s, seed=seed)
    promise = Promise(ttft_budget_s=BUDGET_S, pinned=frozenset(range(0, len(trace), 5)))
    simulated = replay(trace, PROFILE, CLOUD, promise, OverflowPolicy(Limits()))

    async def live() -> list[Row | None]:
        world = LiveWorld(trace, promise, look_again_s)
        await world.run()
        return world.rows

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        rows = runner.run(live())
    return list(zip(simulated.fates, rows, strict=True))


CASES = [(per_s, seed) for per_s in (1.5, 4.0, 10.0) for seed in (1, 2, 3)]


@pytest.mark.parametrize(("per_s", "seed"), CASES)
def test_simulator_and_live_lane_decide_alike_row_by_row(per_s: float, seed: int) -> None:
    """Without the lane's look every 0.1 s, which the simulator leaves out: there nothing changes unnoticed.

    A timer that is not needed any more still wakes the lane, so that now and then a decision comes a little sooner.
    """
    rows = both(per_s, seed, math.inf)
    decided = [
        ((fate.target, fate.reason), (row.target, row.reason))
        for fate, row in rows
        if fate is not None and row is not None
    ]
    assert len(decided) == len(rows)
    assert [index for index, (simulated, live) in enumerate(decided) if simulated != live] == []
    assert {target for (target, _), _ in decided} == {Target.LOCAL, Target.CLOUD}
    apart_s = [abs(fate.decided_s - row.decided_s) for fate, row in rows if fate is not None and row is not None]
    assert sum(each > 1e-6 for each in apart_s) <= len(rows) // 100
    assert max(apart_s) < BUDGET_S / 4


def test_the_look_again_of_the_live_lane_changes_few_decisions() -> None:
    rows = [row for per_s, seed in CASES for row in both(per_s, seed, 0.1)]
    same = sum(fate is not None and row is not None and fate.target == row.target for fate, row in rows)
    assert same >= 0.95 * len(rows)
