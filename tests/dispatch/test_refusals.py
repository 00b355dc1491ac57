"""What a refused client is told: whose doing it is, why, and whether to come back."""

from dataclasses import replace

import pytest

from node.audit.refusals import refused_by
from node.dispatch.outcome import Ending
from node.errors import (
    BudgetSpent,
    ContextLengthExceeded,
    CostBudgetTooSmall,
    EngineAway,
    InvalidRequest,
    LedgerUnavailable,
    OutputTooLong,
    PrivateNotServable,
    Refused,
    SpillwayError,
    render,
)
from node.routing.values import Capability, EngineState, Features, Reason
from tests.dispatch.doubles import House, ScriptedBackend, ScriptedEngine, call_for, named, read
from tests.dispatch.virtual_time import in_virtual_time, now_s
from tests.routing.stories import REQUEST

TOOLS = frozenset({Capability.TOOLS})


async def refused(home: House, request: Features = REQUEST) -> SpillwayError:
    with pytest.raises(SpillwayError) as caught:
        await home.answer(request)
    return caught.value


def down() -> ScriptedEngine:
    return ScriptedEngine(state=EngineState.DOWN)


@pytest.mark.parametrize(
    ("home", "request_", "kind", "reason"),
    [
        (House(None, [ScriptedBackend("cloud")]), named("r", pinned=True), PrivateNotServable, "private_not_servable"),
        (House(ScriptedEngine()), replace(REQUEST, needs=TOOLS), InvalidRequest, "not_servable"),
        (
            House(None, [ScriptedBackend("cloud")]),
            replace(REQUEST, prompt_tokens_estimate=200_000),
            ContextLengthExceeded,
            "context_length",
        ),
        (House(down()), REQUEST, EngineAway, "no_cloud_equivalent"),
        (House(down(), [ScriptedBackend("cloud")]), named("r", pinned=True), EngineAway, "no_premises_capacity"),
    ],
)
@in_virtual_time
async def test_reason_of_a_refusal_is_told_to_client_and_statistics_alike(
    home: House, request_: Features, kind: type[SpillwayError], reason: str
) -> None:
    error = await refused(home, request_)
    assert type(error) is kind
    assert render(error)[1]["x-spillway-reason"] == reason
    assert (home.outcome.reason, home.outcome.ending) == (Reason(reason), Ending.REFUSED)


@in_virtual_time
async def test_clients_mistake_is_rejected_and_not_a_failure_of_ours() -> None:
    home = House(ScriptedEngine(ScriptedBackend("local", (InvalidRequest("x"),))))
    assert "x-spillway-reason" not in render(await refused(home))[1]
    assert home.outcome.ending is Ending.REJECTED


@in_virtual_time
async def test_output_longer_than_the_engines_context_is_not_sent_elsewhere() -> None:
    home = House(ScriptedEngine(ScriptedBackend("local", (OutputTooLong("x"),))), [ScriptedBackend("cloud")])
    assert (await refused(home)).status == 400
    assert home.clouds["cloud"].permits == []
    assert home.outcome.ending is Ending.REJECTED


@pytest.mark.parametrize(
    ("needs", "said"),
    [(frozenset(), "can serve `demo`."), (TOOLS, "can serve `demo` with what it asks for (tools).")],
)
@in_virtual_time
async def test_what_is_asked_for_is_blamed_only_where_something_is(needs: frozenset[Capability], said: str) -> None:
    error = await refused(House(None, [ScriptedBackend("cloud")]), replace(named("r", pinned=True), needs=needs))
    assert error.message == f"The request is pinned to the premises, and nothing on the premises {said}"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (EngineState.DOWN, "The request was refused: it is pinned to the premises, and the engine is down."),
        (EngineState.STARTING, "The request was refused: it is pinned to the premises, and the engine is starting."),
    ],
)
@in_virtual_time
async def test_who_only_an_engine_that_is_away_may_serve_is_told_so(state: EngineState, said: str) -> None:
    home = House(ScriptedEngine(state=state))
    error = await refused(home, named("r", pinned=True))
    assert (error.message, error.code) == (said, "engine_unavailable")
    assert "retry-after" in render(error)[1]


@pytest.mark.parametrize(("asked", "pinned"), [(100_001, False), (4097, True)])
@in_virtual_time
async def test_output_longer_than_anything_could_write_goes_nowhere(asked: int, pinned: bool) -> None:
    home = House(ScriptedEngine(), [ScriptedBackend("cloud")])
    request = named("r", pinned=pinned)
    with pytest.raises(OutputTooLong, match=f"max_tokens={asked}.* at most {asked - 1} tokens") as caught:
        await home.dispatcher.answer(replace(call_for(request), body={"max_tokens": asked}), request)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    assert home.outcome.ending is Ending.REJECTED
    fits = await home.dispatcher.answer(replace(call_for(request), body={"max_tokens": asked - 1}), request)
    await read(fits)


@in_virtual_time
async def test_cost_budget_too_small_for_the_only_place_is_a_mistake_no_retry_can_help() -> None:
    home = House(None, [ScriptedBackend("cloud")])
    error = await refused(home, replace(REQUEST, cost_budget_nano_usd=1000))
    assert isinstance(error, CostBudgetTooSmall)
    status, headers, _ = render(error)
    assert (status, error.code, headers["x-should-retry"], "retry-after" in headers) == (
        400, "cost_budget", "false", False,
    )  # fmt: skip
    assert "cost_budget_usd of 0.000001" in error.message
    assert "capacity" not in error.message
    assert home.outcome.ending is Ending.REFUSED


@in_virtual_time
async def test_cost_budget_beside_an_engine_without_capacity_may_be_retried() -> None:
    error = await refused(House(down(), [ScriptedBackend("cloud")]), replace(REQUEST, cost_budget_nano_usd=1000))
    assert isinstance(error, Refused)
    assert "the engine is down, and the cloud could cost more than its cost_budget_usd" in error.message


@in_virtual_time
async def test_unavailable_provider_is_not_blamed_on_the_engine_of_a_cloud_only_model() -> None:
    home = House(None, [ScriptedBackend("cloud")])
    home.providers.isolate("cloud", now_s())
    error = await refused(home)
    assert error.message == "The request was refused: only the cloud can serve it, and no cloud provider is available."
    assert error.status == 503


@in_virtual_time
async def test_no_equivalent_is_said_only_where_none_is_declared() -> None:
    assert "no cloud equivalent of `demo` is declared" in (await refused(House(down()))).message
    unconfigured = House(down())
    unconfigured.dispatcher.served = {
        "demo": replace(
            unconfigured.dispatcher.served["demo"],
            model=replace(unconfigured.model, out_of_reach=("holysheep", "openai")),
        )
    }
    said = (await refused(unconfigured)).message
    assert "no provider of its cloud equivalents is configured (holysheep, openai)" in said


@in_virtual_time
async def test_field_that_rules_the_equivalents_out_is_named() -> None:
    error = await refused(House(ScriptedEngine(), [ScriptedBackend("cloud")]), replace(REQUEST, needs=TOOLS))
    assert "none of its cloud equivalents can do what it asks for (tools)" in error.message


@in_virtual_time
async def test_budget_that_says_no_as_the_price_is_written_down_is_the_reason_in_the_statistics_too() -> None:
    home = House(None, [ScriptedBackend("cloud")])
    home.ledger.refuses = BudgetSpent("why", rule="budget_spent", retry_after_s=1.0)
    error = await refused(home)
    assert render(error)[1]["x-spillway-reason"] == "budget_spent"
    assert (home.outcome.reason, home.outcome.ending) == (Reason.BUDGET_SPENT, Ending.REFUSED)
    assert refused_by(home.outcome) is None  # the ledger has told the audit as it refused


@in_virtual_time
async def test_row_70_what_cannot_be_written_down_is_refused_for_that_and_told_to_the_audit_once() -> None:
    unasked, asked = (House(None, [ScriptedBackend("cloud")]) for _ in range(2))
    unasked.ledger.available = False  # so it is for a second after it has failed, and nobody asks it
    asked.ledger.refuses = LedgerUnavailable("why", rule="ledger_unavailable", retry_after_s=1.0)
    for home, told_by_the_node in ((unasked, "ledger_unavailable"), (asked, None)):
        error = await refused(home)
        assert (type(error), error.rule, error.retry_after_s) == (LedgerUnavailable, "ledger_unavailable", 1.0)
        assert refused_by(home.outcome) == told_by_the_node  # else by the ledger itself, as it refuses
