"""From request to answer: slots come back, failures fall over in time, and everything is told exactly once."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from node.dispatch.dispatcher import Answer
from node.dispatch.outcome import Ending
from node.errors import (
    ContextLengthExceeded,
    EngineAway,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    PrivateNotServable,
    RefusedBusy,
    SpillwayError,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTruncated,
)
from node.money import Usage
from node.routing.values import EngineState, Reason
from tests.dispatch.doubles import (
    END,
    HELLO,
    ROLE,
    WHOLE,
    House,
    ScriptedBackend,
    ScriptedEngine,
    Step,
    call_for,
    named,
    read,
)
from tests.dispatch.virtual_time import in_virtual_time, now_s, settle
from tests.routing.stories import REQUEST


def local(*script: Step) -> ScriptedEngine:
    return ScriptedEngine(ScriptedBackend("local", script or WHOLE))


def cloud(*script: Step, name: str = "cloud", counted: Usage | None = None) -> ScriptedBackend:
    return ScriptedBackend(name, script or WHOLE, counted=counted)


def assert_at_rest(home: House) -> None:
    """Nothing is held: no slot, no place in the queue, no stream."""
    assert (home.lane.in_flight, home.lane.depth) == (0, 0)
    backends = [home.clouds[name].serves for name in home.clouds]
    if home.engine is not None:
        backends.append(home.engine.serves)
    assert [backend.opened for backend in backends] == [backend.closed for backend in backends]


@in_virtual_time
async def test_local_answer_costs_nothing_and_saves_the_list_price() -> None:
    home = House(local(0.25, *WHOLE))
    assert await read(await home.answer()) == b"role;hello;end;"
    outcome = home.outcome
    assert (outcome.ending, outcome.backend, outcome.reason) == (Ending.DONE, "local", Reason.NO_CLOUD_EQUIVALENT)
    assert (outcome.cost_nano_usd, outcome.reference_nano_usd) == (0, 10 * 1000 + 1 * 2000)
    assert (outcome.usage, outcome.attempts) == (END.usage, 1)
    assert outcome.ttft_s == pytest.approx(0.25)
    assert_at_rest(home)


@in_virtual_time
async def test_answer_begins_with_the_first_content_and_not_before() -> None:
    home = House(local(ROLE, 0.5, HELLO, END))
    answer = await home.answer()
    assert now_s() == pytest.approx(1000.5)
    assert [chunk.data async for chunk in answer] == [b"role;hello;", b"end;"]
    await answer.aclose()
    assert_at_rest(home)


@in_virtual_time
async def test_empty_but_complete_answer_is_an_answer() -> None:
    home = House(local(ROLE, END))
    assert await read(await home.answer()) == b"role;end;"
    assert (home.outcome.ending, home.outcome.ttft_s) == (Ending.DONE, None)


@in_virtual_time
async def test_answer_without_streaming_tells_no_ttft() -> None:
    home = House(None, [cloud()])
    await read(await home.answer(stream=False))
    assert home.outcome.ttft_s is None
    assert home.providers.states["cloud"].ttft.high_s(now_s()) == 0.5


@in_virtual_time
async def test_cloud_answer_is_paid_and_its_ttft_remembered() -> None:
    home = House(None, [cloud(0.8, *WHOLE)])
    await read(await home.answer())
    assert home.outcome.cost_nano_usd == 10 * 1000 + 1 * 2000
    assert home.providers.states["cloud"].ttft.high_s(now_s()) == pytest.approx(0.8, rel=0.05)
    (permit,) = home.clouds["cloud"].permits
    assert (permit.request_id, permit.reserved_nano_usd) == ("r", 500 * 1000 + 100 * 2000)


@in_virtual_time
async def test_engine_failing_before_content_falls_over_to_the_cloud() -> None:
    home = House(local(ROLE, EngineFailed("x")), [cloud()])
    assert await read(await home.answer()) == b"role;hello;end;"
    assert (home.outcome.backend, home.outcome.reason, home.outcome.attempts) == ("cloud", Reason.LOCAL_FAILED, 2)
    assert_at_rest(home)


@in_virtual_time
async def test_cloud_failing_before_content_falls_back_to_the_engine() -> None:
    engine = local()
    engine.state = EngineState.STARTING
    home = House(engine, [cloud(0.1, UpstreamError("x"))])
    answering = asyncio.create_task(home.answer())
    await settle()
    engine.state = EngineState.READY
    assert await read(await answering) == b"role;hello;end;"
    assert (home.outcome.backend, home.outcome.reason, home.outcome.attempts) == ("local", Reason.CLOUD_FAILED, 2)
    assert_at_rest(home)


@in_virtual_time
async def test_one_provider_failing_leaves_it_to_the_other() -> None:
    home = House(None, [cloud(UpstreamError("x")), cloud(name="other")])
    await read(await home.answer())
    assert (home.outcome.backend, home.outcome.reason) == ("other", Reason.CLOUD_FAILED)


@in_virtual_time
async def test_what_fails_twice_is_reported_with_the_last_error() -> None:
    home = House(local(EngineFailed("x")), [cloud(UpstreamTimeout("y")), cloud(name="other")])
    with pytest.raises(UpstreamTimeout):
        await home.answer()
    assert (home.outcome.ending, home.outcome.error_code) == (Ending.FAILED, "upstream_timeout")
    assert home.clouds["other"].serves.opened == 0
    assert_at_rest(home)


@in_virtual_time
async def test_pinned_request_never_falls_over_to_the_cloud() -> None:
    home = House(local(EngineFailed("x")), [cloud()])
    with pytest.raises(EngineFailed):
        await home.answer(named("r", pinned=True))
    assert home.clouds["cloud"].permits == []
    assert home.outcome.ending is Ending.FAILED
    assert_at_rest(home)


@in_virtual_time
async def test_prompt_too_long_for_the_engine_is_tried_in_a_larger_context() -> None:
    home = House(local(ContextLengthExceeded("x")), [cloud()])
    await read(await home.answer())
    assert (home.outcome.backend, home.outcome.reason) == ("cloud", Reason.CLOUD_ONLY_LENGTH)


@in_virtual_time
async def test_clients_mistake_is_not_tried_elsewhere() -> None:
    home = House(local(InvalidRequest("x")), [cloud()])
    with pytest.raises(InvalidRequest):
        await home.answer()
    assert home.clouds["cloud"].serves.opened == 0
    assert_at_rest(home)


@pytest.mark.parametrize("error", [EngineFailed("x"), UpstreamTruncated("x")])
@in_virtual_time
async def test_failure_after_content_ends_the_answer_and_splices_nothing_in(error: SpillwayError) -> None:
    home = House(local(HELLO, error), [cloud()])
    answer = await home.answer()
    chunks = aiter(answer)
    assert (await anext(chunks)).data == b"hello;"
    with pytest.raises(type(error)):
        await anext(chunks)
    await answer.aclose()
    assert home.clouds["cloud"].serves.opened == 0
    assert (home.outcome.ending, home.outcome.error_code) == (Ending.FAILED, error.code)
    assert_at_rest(home)


@in_virtual_time
async def test_answer_that_stops_without_its_usage_is_an_error_and_not_a_short_answer() -> None:
    home = House(local(HELLO))
    with pytest.raises(UpstreamTruncated):
        await read(await home.answer())
    assert home.outcome.ending is Ending.FAILED
    assert_at_rest(home)


@in_virtual_time
async def test_stream_that_ends_before_any_content_falls_over() -> None:
    home = House(local(ROLE), [cloud()])
    await read(await home.answer())
    assert home.outcome.backend == "cloud"


@in_virtual_time
async def test_client_that_hangs_up_in_the_answer_stops_the_engine_and_frees_the_slot() -> None:
    home = House(local(HELLO, 60.0, END))
    answer = await home.answer()
    async with aclosing(aiter(answer)) as chunks:  # type: ignore[type-var]
        await anext(chunks)
    await answer.aclose()
    await answer.aclose()
    assert home.outcome.ending is Ending.CLIENT_CLOSED
    assert home.outcome.usage == Usage(100, 1, estimated=True)
    assert now_s() == 1000.0
    assert_at_rest(home)


@in_virtual_time
async def test_what_a_cut_cloud_answer_used_is_paid_as_counted() -> None:
    home = House(None, [cloud(HELLO, 60.0, END, counted=Usage(12, 5))])
    answer = await home.answer()
    await answer.aclose()
    assert home.outcome.cost_nano_usd == 12 * 1000 + 5 * 2000


@pytest.mark.parametrize("in_cloud", [False, True])
@in_virtual_time
async def test_client_that_hangs_up_before_the_first_content_stops_the_work(in_cloud: bool) -> None:
    home = House(None, [cloud(60.0)]) if in_cloud else House(local(60.0))
    answering = asyncio.create_task(home.answer())
    await settle()
    answering.cancel()
    await asyncio.wait([answering])
    assert answering.cancelled()
    assert home.outcome.ending is Ending.CLIENT_CLOSED
    # What was cut off at a provider may be on its bill.
    assert home.outcome.cost_nano_usd == (100 * 1000 if in_cloud else 0)
    assert_at_rest(home)


@in_virtual_time
async def test_client_that_hangs_up_in_the_queue_is_gone_at_once() -> None:
    home = House(replace(local(HELLO, 5.0, END), slots=1), [cloud()])
    busy = await home.answer(named("a"))
    waiting = asyncio.create_task(home.answer(named("b")))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (home.outcome.request_id, home.outcome.ending, home.outcome.attempts) == ("b", Ending.CLIENT_CLOSED, 0)
    await read(busy)
    assert [outcome.request_id for outcome in home.outcomes] == ["b", "a"]
    assert_at_rest(home)


@in_virtual_time
async def test_slot_given_back_goes_to_the_next_in_the_queue() -> None:
    home = House(replace(local(HELLO, 0.5, END), slots=1), [cloud()])
    first = await home.answer(named("a"))
    second = asyncio.create_task(home.answer(named("b")))
    await read(first)
    await read(await second)
    outcome = home.outcomes[1]
    assert (outcome.backend, outcome.reason) == ("local", Reason.SLOT_OPENED)
    assert outcome.queue_s == pytest.approx(0.5)
    assert_at_rest(home)


@in_virtual_time
async def test_waiting_too_long_ends_in_the_cloud_with_the_queue_time_told() -> None:
    home = House(replace(local(HELLO, 5.0, END), slots=1), [cloud(0.2, *WHOLE)])
    first = await home.answer(named("a"))
    await read(await home.answer(named("b")))
    outcome = home.outcome
    assert (outcome.backend, outcome.reason) == ("cloud", Reason.LAST_MOMENT)
    assert outcome.queue_s == pytest.approx(1.5)
    assert outcome.ttft_s == pytest.approx(1.7)
    await first.aclose()
    assert_at_rest(home)


@in_virtual_time
async def test_refusal_says_busy_when_the_engine_is_busy_and_unavailable_when_it_is_down() -> None:
    home = House(replace(local(HELLO, 100.0, END), slots=1))
    busy = await home.answer(named("a"))
    with pytest.raises(RefusedBusy) as refused:
        await home.answer(named("b"))
    assert refused.value.rule == "no_cloud_equivalent"
    await busy.aclose()
    assert home.engine is not None
    home.engine.state = EngineState.DOWN
    with pytest.raises(EngineAway) as down:
        await home.answer(named("c", arrived_s=now_s()))
    assert (down.value.status, [outcome.ending for outcome in home.outcomes]) == (
        503,
        [Ending.REFUSED, Ending.CLIENT_CLOSED, Ending.REFUSED],
    )


@in_virtual_time
async def test_pinned_request_for_a_cloud_only_model_is_refused_as_such() -> None:
    home = House(None, [cloud()])
    with pytest.raises(PrivateNotServable):
        await home.answer(named("r", pinned=True))
    assert (home.outcome.ending, home.outcome.backend) == (Ending.REFUSED, None)
    assert home.clouds["cloud"].permits == []


@in_virtual_time
async def test_unknown_model_is_named() -> None:
    home = House(local())
    with pytest.raises(ModelNotFound, match="`other`"):
        await home.dispatcher.answer(replace(call_for(REQUEST), model="other"), replace(REQUEST, model="other"))


@pytest.mark.parametrize(
    ("error", "paid_nano_usd"),
    [(UpstreamTimeout("x"), 100 * 1000), (UpstreamTruncated("x"), 100 * 1000), (UpstreamRateLimited("x"), 0)],
)
@in_virtual_time
async def test_attempt_cut_off_may_be_on_the_bill_and_a_clean_refusal_is_not(
    error: SpillwayError, paid_nano_usd: int
) -> None:
    home = House(None, [cloud(error), cloud(name="other")])
    await read(await home.answer())
    assert home.outcome.cost_nano_usd == paid_nano_usd + 12_000


@in_virtual_time
async def test_request_for_many_choices_gives_all_its_slots_back() -> None:
    home = House(replace(local(), slots=4))
    answer: Answer = await home.answer(named("r", choices=3))
    assert home.lane.in_flight == 3
    await read(answer)
    assert_at_rest(home)
