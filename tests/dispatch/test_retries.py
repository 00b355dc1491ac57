"""What is tried again, where, how often and for how long."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from random import Random

import pytest

from node.backend import Call, Chunk
from node.dispatch.outcome import Ending
from node.errors import (
    Refused,
    SpillwayError,
    UpstreamAuth,
    UpstreamConnect,
    UpstreamError,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamTruncated,
    render,
)
from node.routing.breaker import BreakerState
from node.routing.permit import EgressForbidden
from node.routing.values import EngineState, Reason, Zone
from tests.dispatch.doubles import WHOLE, House, ScriptedBackend, ScriptedEngine, Step, named, read
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle
from tests.routing.stories import REQUEST


def cloud(*script: Step, name: str = "cloud") -> ScriptedBackend:
    return ScriptedBackend(name, script or WHOLE)


class Once(ScriptedBackend):
    """Fails once, in its own way, and serves ever after."""

    def __init__(self, name: str, *script: Step) -> None:
        super().__init__(name, script)

    async def open(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The script, and then the usual one."""
        try:
            async with aclosing(super().open(call)) as stream:
                async for chunk in stream:
                    yield chunk
        finally:
            self.script = WHOLE


@in_virtual_time
async def test_row_46_only_provider_is_asked_once_more_after_a_jittered_moment() -> None:
    home = House(None, [Once("cloud", UpstreamError("503"))])
    assert await read(await home.answer()) == b"role;hello;end;"
    assert (home.outcome.backend, home.outcome.reason, home.outcome.attempts) == ("cloud", Reason.CLOUD_FAILED, 2)
    assert 1000.0 < now_s() <= 1000.1


@in_virtual_time
async def test_row_46_what_fails_twice_is_the_clients_502() -> None:
    home = House(None, [cloud(UpstreamError("503"))])
    with pytest.raises(UpstreamError):
        await home.answer()
    assert (home.clouds["cloud"].serves.opened, home.outcome.attempts) == (2, 2)


@in_virtual_time
async def test_nobody_waits_while_another_provider_is_free() -> None:
    home = House(None, [cloud(UpstreamError("503")), cloud(name="other")])
    await read(await home.answer())
    assert (home.outcome.backend, now_s()) == ("other", 1000.0)


@in_virtual_time
async def test_nobody_waits_while_the_engine_is_free() -> None:
    engine = ScriptedEngine(state=EngineState.STARTING)
    home = House(engine, [cloud(0.1, UpstreamError("503"))])
    answering = asyncio.create_task(home.answer())
    await settle()
    engine.state = EngineState.READY
    await read(await answering)
    assert (home.outcome.backend, home.outcome.reason) == ("local", Reason.CLOUD_FAILED)
    assert now_s() == pytest.approx(1000.1)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRejected("400"),
        UpstreamAuth("401"),
        UpstreamQuota("402"),
        UpstreamRateLimited("429"),
        UpstreamTls("x"),
        UpstreamTimeout("x"),
        UpstreamError("503", retry_after_s=3.0),
    ],
    ids=["400", "401", "402", "429", "tls", "timeout", "503 with a time"],
)
@in_virtual_time
async def test_what_another_call_cannot_help_is_not_sent_there_again(error: SpillwayError) -> None:
    home = House(None, [cloud(error)])
    with pytest.raises(type(error)):
        await home.answer()
    assert home.clouds["cloud"].serves.opened == 1


@pytest.mark.parametrize("error", [UpstreamError("x"), UpstreamTruncated("x"), UpstreamConnect("x")])
@in_virtual_time
async def test_what_may_pass_is_sent_there_again(error: SpillwayError) -> None:
    home = House(None, [Once("cloud", error)])
    await read(await home.answer())
    assert home.clouds["cloud"].serves.opened == 2


@in_virtual_time
async def test_row_45_rejected_request_goes_to_no_other_provider_either() -> None:
    home = House(None, [cloud(UpstreamRejected("400")), cloud(name="other")])
    with pytest.raises(UpstreamRejected) as caught:
        await home.answer()
    assert (render(caught.value)[0], caught.value.code) == (502, "upstream_rejected")
    assert home.clouds["other"].serves.opened == 0
    assert home.providers.states["cloud"].standing.is_available(now_s())


@in_virtual_time
async def test_row_42_while_paused_a_refusal_says_when_to_come_back() -> None:
    home = House(None, [cloud(UpstreamRateLimited("x", retry_after_s=7))])
    with pytest.raises(UpstreamRateLimited) as first:
        await home.answer()
    assert render(first.value)[:2][0] == 429
    assert render(first.value)[1]["retry-after"] == "7"
    await asyncio.sleep(2)
    with pytest.raises(Refused) as second:
        await home.answer(named("b", arrived_s=now_s()))
    assert (render(second.value)[0], render(second.value)[1]["retry-after"]) == (503, "5")


@in_virtual_time
async def test_row_47_silent_provider_is_left_for_another_one_at_the_budget() -> None:
    home = House(None, [cloud(60.0, *WHOLE), cloud(name="other")])
    await read(await home.answer())
    assert (home.outcome.backend, home.outcome.attempts) == ("other", 2)
    assert home.outcome.ttft_s == pytest.approx(REQUEST.ttft_budget_s)
    assert home.clouds["cloud"].serves.closed == 1
    assert home.clouds["other"].spent_s == [pytest.approx(2.0)]


@in_virtual_time
async def test_row_47_slow_provider_is_waited_for_where_there_is_no_other() -> None:
    home = House(None, [cloud(6.0, *WHOLE)])
    await read(await home.answer())
    assert home.outcome.attempts == 1
    assert home.outcome.ttft_s == pytest.approx(6.0)


@in_virtual_time
async def test_slow_provider_is_left_as_soon_as_another_one_is_back() -> None:
    home = House(None, [cloud(6.0, *WHOLE), cloud(name="other")])
    home.providers.states["other"].standing.paused_until_s = 1003.2
    await read(await home.answer())
    assert home.outcome.backend == "other"
    assert home.outcome.ttft_s == pytest.approx(3.5)


@in_virtual_time
async def test_late_second_attempt_is_not_cut_again() -> None:
    home = House(None, [cloud(60.0), cloud(5.0, *WHOLE, name="other")])
    await read(await home.answer())
    assert home.outcome.backend == "other"
    assert home.outcome.ttft_s == pytest.approx(7.0)


@in_virtual_time
async def test_answer_that_does_not_stream_is_not_cut_for_taking_its_time() -> None:
    home = House(None, [cloud(6.0, *WHOLE), cloud(name="other")])
    await read(await home.answer(stream=False))
    assert (home.outcome.backend, home.outcome.attempts) == ("cloud", 1)


@in_virtual_time
async def test_no_retry_begins_after_the_clients_own_budget_is_spent() -> None:
    home = House(None, [cloud(0.9, UpstreamError("x")), cloud(name="other")])
    with pytest.raises(UpstreamError):
        await home.answer(replace(REQUEST, ttft_budget_s=0.8, give_up_s=1000.8))
    assert home.clouds["other"].serves.opened == 0


@in_virtual_time
async def test_silent_provider_is_left_for_another_one_though_the_clients_own_budget_is_spent() -> None:
    home = House(None, [cloud(60.0), cloud(name="other")])
    await read(await home.answer(replace(REQUEST, ttft_budget_s=0.8, give_up_s=1000.8)))
    assert home.outcome.backend == "other"
    assert home.outcome.ttft_s == pytest.approx(1.0)


@in_virtual_time
async def test_no_retry_begins_that_cannot_buy_a_first_token() -> None:
    home = House(None, [cloud(0.5, UpstreamError("x")), cloud(name="other")])
    home.providers.states["other"].standing.recent_ttft.add(0.6, now_s())
    home.providers.states["cloud"].standing.recent_ttft.add(0.1, now_s())
    with pytest.raises(UpstreamError):
        await home.answer(replace(REQUEST, ttft_budget_s=0.8, give_up_s=1000.8))
    assert home.clouds["other"].serves.opened == 0


@in_virtual_time
async def test_provider_that_has_gone_away_since_the_decision_is_not_called() -> None:
    home = House(None, [cloud(), cloud(name="other")])
    placing = home.lane.place

    async def place_and_isolate(*args: object) -> object:
        decision = await placing(*args)  # type: ignore[arg-type]
        home.providers.isolate("cloud", now_s())
        return decision

    home.lane.place = place_and_isolate  # type: ignore[method-assign,assignment]
    await read(await home.answer())
    assert (home.clouds["cloud"].permits, home.outcome.backend, home.outcome.attempts) == ([], "other", 1)


@in_virtual_time
async def test_pinned_request_falls_over_to_the_premises_and_never_to_the_cloud() -> None:
    home = House(
        None,
        [cloud(), cloud(UpstreamError("x"), name="gpu-1"), cloud(name="gpu-2")],
        zones={"gpu-1": Zone.PREMISES, "gpu-2": Zone.PREMISES},
    )
    await read(await home.answer(named("r", pinned=True)))
    assert (home.outcome.backend, home.outcome.attempts) == ("gpu-2", 2)
    assert home.clouds["cloud"].permits == []


@in_virtual_time
async def test_pinned_request_whose_premises_fail_ends_there() -> None:
    home = House(None, [cloud(), cloud(UpstreamError("x"), name="gpu-1")], zones={"gpu-1": Zone.PREMISES})
    with pytest.raises(UpstreamError):
        await home.answer(named("r", pinned=True))
    assert home.clouds["cloud"].permits == []
    assert home.clouds["gpu-1"].serves.opened == 2


@in_virtual_time
async def test_way_in_is_given_back_when_no_permit_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EgressForbidden("no")

    monkeypatch.setattr("node.dispatch.attempts.grant", refuse)
    home = House(None, [cloud()])
    with pytest.raises(EgressForbidden):
        await home.answer()
    assert home.providers.states["cloud"].standing.in_flight == 0


@in_virtual_time
async def test_hung_up_clients_leave_nothing_under_way_and_no_blame() -> None:
    home = House(None, [cloud(60.0)])
    for index in range(20):
        answering = asyncio.create_task(home.answer(named(f"r{index}", arrived_s=now_s())))
        await asyncio.sleep(1.0)
        answering.cancel()
        await asyncio.wait([answering])
    of = home.providers.states["cloud"].standing
    assert (of.in_flight, of.breaker.state(now_s())) == (0, BreakerState.CLOSED)
    assert {outcome.ending for outcome in home.outcomes} == {Ending.CLIENT_CLOSED}


class Flapping(ScriptedBackend):
    """Fails half of its calls, drawn from a seed."""

    def __init__(self, name: str, share: float, seed: int = 1) -> None:
        super().__init__(name)
        self._share, self._random = share, Random(seed)

    def open(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """As it is drawn."""
        self.script = (0.05, UpstreamError("flap")) if self._random.random() < self._share else (0.05, *WHOLE)
        return super().open(call)


async def _arrivals(home: House, count: int, per_s: float) -> int:
    """So many requests at a steady rate; how many were answered."""

    async def one(index: int) -> bool:
        try:
            await read(await home.answer(named(f"r{index}", arrived_s=now_s())))
        except SpillwayError:
            return False
        return True

    async with asyncio.TaskGroup() as group:
        tasks = []
        for index in range(count):
            tasks.append(group.create_task(one(index)))
            await asyncio.sleep(1 / per_s)
    return sum(task.result() for task in tasks)


@in_virtual_time
async def test_row_59_flapping_provider_meets_no_retry_storm() -> None:
    flapping = Flapping("cloud", 0.5)
    home = House(None, [flapping])
    await _arrivals(home, 2000, per_s=50)
    assert flapping.opened <= 1.2 * 2000
    assert sum(outcome.attempts for outcome in home.outcomes) <= 1.2 * 2000
    assert flapping.opened < 600  # the breaker is open for most of the time


@in_virtual_time
async def test_row_59_flapping_provider_beside_a_good_one_costs_hardly_an_answer() -> None:
    flapping, good = Flapping("cloud", 0.5), Flapping("other", 0.0)
    home = House(None, [flapping, good])
    answered = await _arrivals(home, 2000, per_s=50)
    assert answered >= 0.995 * 2000
    assert flapping.opened + good.opened <= 1.2 * 2000


@in_virtual_time
async def test_provider_that_is_down_beside_a_good_one_costs_hardly_an_answer() -> None:
    down, good = Flapping("cloud", 1.0), Flapping("other", 0.0)
    home = House(None, [down, good])
    answered = await _arrivals(home, 2000, per_s=50)
    assert answered >= 0.995 * 2000
    assert down.opened < 60
    assert home.providers.states["cloud"].standing.in_flight == 0


@in_virtual_time
async def test_provider_that_hangs_beside_a_good_one_costs_hardly_an_answer() -> None:
    home = House(None, [cloud(60.0), Flapping("other", 0.0)])
    answered = await _arrivals(home, 1000, per_s=50)
    assert answered == 1000
    assert home.clouds["cloud"].serves.opened < 200
