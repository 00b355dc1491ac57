"""A copy in the cloud of what is late in the engine. Its last safe moment is 1.5 s after arrival."""

import asyncio
from dataclasses import replace

import pytest

from node.dispatch.hedging import Hedging
from node.dispatch.outcome import Ending
from node.errors import EngineFailed, InvalidRequest, UpstreamError
from node.money import Usage
from node.routing.retry_budget import RetryBudget, RetryLimits
from node.routing.values import Features, Reason
from tests.dispatch.doubles import END, HELLO, WHOLE, House, ScriptedBackend, ScriptedEngine, Step, named, read
from tests.dispatch.virtual_time import in_virtual_time, now_s
from tests.routing.stories import REQUEST

FROM_CLOUD: tuple[Step, ...] = (0.3, *WHOLE)


def hedging(share: float = 0.5) -> Hedging:
    return Hedging(RetryBudget(RetryLimits(share=share, at_least=1.0)), margin_s=0.0)


def house(*local: Step, cloud: tuple[Step, ...] = FROM_CLOUD, with_: Hedging | None = None) -> House:
    engine = ScriptedEngine(ScriptedBackend("local", local), slots=8)
    return House(engine, [ScriptedBackend("cloud", cloud)], hedging=with_ or hedging())


def assert_at_rest(home: House) -> None:
    for backend in (home.clouds["cloud"].serves, home.engine.serves if home.engine else None):
        assert backend is not None
        assert backend.opened == backend.closed
    assert (home.lane.depth, home.lane.in_flight) == (0, 0)
    assert home.providers.states["cloud"].standing.in_flight == 0
    assert len(asyncio.all_tasks()) == 1


@in_virtual_time
async def test_late_engine_is_overtaken_by_a_copy_sent_at_the_last_safe_moment() -> None:
    home = house(10.0, *WHOLE)
    await read(await home.answer())
    outcome = home.outcome
    assert (outcome.backend, outcome.reason, outcome.attempts) == ("cloud", Reason.HEDGED, 2)
    assert outcome.ttft_s == pytest.approx(1.8)
    assert home.clouds["cloud"].permits[0].rule == "hedged"
    assert_at_rest(home)


@in_virtual_time
async def test_engine_in_time_needs_no_copy() -> None:
    home = house(1.4, *WHOLE)
    await read(await home.answer())
    assert (home.outcome.backend, home.clouds["cloud"].serves.opened) == ("local", 0)
    assert_at_rest(home)


@in_virtual_time
async def test_engine_that_is_quicker_after_all_wins_and_both_are_accounted() -> None:
    home = house(1.6, *WHOLE)
    await read(await home.answer())
    outcome = home.outcome
    assert (outcome.backend, outcome.attempts) == ("local", 2)
    assert outcome.ttft_s == pytest.approx(1.6)
    assert outcome.cost_nano_usd == 100 * 1000  # the copy was cut after its prompt
    assert_at_rest(home)


@in_virtual_time
async def test_winner_is_not_mixed_with_the_loser() -> None:
    home = house(1.9, HELLO, 1.0, END, cloud=(0.3, saying(b"cloud;"), 2.0, END))
    assert await read(await home.answer()) == b"cloud;end;"
    assert_at_rest(home)


def saying(data: bytes) -> Step:
    return type(HELLO)(data, has_content=True, output_tokens=1)


@in_virtual_time
async def test_copy_that_fails_leaves_it_to_the_engine() -> None:
    home = house(3.0, *WHOLE, cloud=(UpstreamError("x"),))
    await read(await home.answer())
    assert (home.outcome.backend, home.outcome.ending) == ("local", Ending.DONE)
    assert_at_rest(home)


@in_virtual_time
async def test_engine_that_fails_leaves_it_to_the_copy_under_way() -> None:
    home = house(1.6, EngineFailed("x"))
    await read(await home.answer())
    assert (home.outcome.backend, home.outcome.reason) == ("cloud", Reason.HEDGED)
    assert_at_rest(home)


@in_virtual_time
async def test_request_the_engine_finds_wrong_is_wrong() -> None:
    home = house(1.6, InvalidRequest("x"))
    with pytest.raises(InvalidRequest):
        await home.answer()
    assert_at_rest(home)


@in_virtual_time
async def test_engine_and_copy_that_both_fail_are_the_engines_error() -> None:
    home = house(1.6, EngineFailed("x"), cloud=(0.3, UpstreamError("y")))
    with pytest.raises(EngineFailed):
        await home.answer()
    assert home.outcome.attempts == 2
    assert_at_rest(home)


@pytest.mark.parametrize(
    "request_",
    [
        named("r", pinned=True),
        replace(REQUEST, prefer_local=True),
        replace(REQUEST, stay_with="local"),
        replace(REQUEST, cost_budget_nano_usd=1),
    ],
    ids=["pinned", "prefers local", "in the middle of a tool call", "too dear"],
)
@in_virtual_time
async def test_what_may_or_should_not_leave_is_never_copied(request_: Features) -> None:
    home = house(10.0, *WHOLE)
    await read(await home.answer(request_))
    assert home.outcome.backend == "local"
    assert home.clouds["cloud"].permits == []
    assert_at_rest(home)


@in_virtual_time
async def test_answer_that_does_not_stream_is_not_copied() -> None:
    home = house(10.0, *WHOLE)
    await read(await home.answer(stream=False))
    assert home.clouds["cloud"].permits == []


@in_virtual_time
async def test_nothing_is_copied_unless_told() -> None:
    engine = ScriptedEngine(ScriptedBackend("local", (10.0, *WHOLE)))
    home = House(engine, [ScriptedBackend("cloud")])
    await read(await home.answer())
    assert home.clouds["cloud"].permits == []


@in_virtual_time
async def test_copies_stay_within_their_own_budget() -> None:
    home = house(10.0, *WHOLE, with_=hedging(share=0.25))
    answers = await asyncio.gather(*(home.answer(named(f"r{index}")) for index in range(8)))
    await asyncio.gather(*(read(answer) for answer in answers))
    backends = [outcome.backend for outcome in home.outcomes]
    assert (backends.count("cloud"), backends.count("local")) == (1, 7)  # what came a second ago has faded a little
    assert_at_rest(home)


@pytest.mark.parametrize("after_s", [1.0, 1.6])
@in_virtual_time
async def test_client_that_hangs_up_stops_both(after_s: float) -> None:
    home = house(10.0, *WHOLE, cloud=(10.0, *WHOLE))
    answering = asyncio.create_task(home.answer())
    await asyncio.sleep(after_s)
    answering.cancel()
    await asyncio.wait([answering])
    assert answering.cancelled()
    assert home.outcome.ending is Ending.CLIENT_CLOSED
    assert now_s() == 1000.0 + after_s
    assert_at_rest(home)


@in_virtual_time
async def test_client_that_hangs_up_while_only_the_copy_is_left_stops_it() -> None:
    home = house(1.6, EngineFailed("x"), cloud=(10.0, *WHOLE))
    answering = asyncio.create_task(home.answer())
    await asyncio.sleep(2.0)
    answering.cancel()
    await asyncio.wait([answering])
    assert home.outcome.ending is Ending.CLIENT_CLOSED
    assert home.outcome.cost_nano_usd == 100 * 1000
    assert_at_rest(home)


@in_virtual_time
async def test_both_in_the_same_moment_leave_nothing_behind() -> None:
    home = house(1.8, *WHOLE)
    await read(await home.answer())
    assert home.outcome.backend in ("local", "cloud")
    assert home.outcome.cost_nano_usd > 0
    assert home.outcome.usage == Usage(10, 1)
    assert_at_rest(home)
