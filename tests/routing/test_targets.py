"""Several places to go to: which of them a request may use, and which is asked first."""

from dataclasses import replace

from node.routing.policy import OverflowPolicy
from node.routing.targets import TargetsPolicy
from node.routing.values import (
    CloudOption,
    Decision,
    EngineState,
    Features,
    Limits,
    Reason,
    Residency,
    Snapshot,
    Target,
    Zone,
)
from tests.routing.stories import CLOUD, ENGINE, FULL, IDLE, PINNED, REQUEST, SLOW

POLICY = TargetsPolicy(OverflowPolicy(Limits()))
BESIDE = replace(CLOUD, provider="gpu-2", zone=Zone.PREMISES)


def at(*options: CloudOption) -> Snapshot:
    return Snapshot(engine=None, cloud=options)


def decide(request: Features, snapshot: Snapshot, after_s: float = 0.0) -> Decision:
    return POLICY.decide(request, snapshot, request.arrived_s + after_s)


def went_to(decision: Decision) -> tuple[Target, str | None]:
    return decision.target, decision.cloud.provider if decision.cloud else None


def test_pinned_request_goes_to_the_premises_and_passes_the_cloud_by() -> None:
    assert went_to(decide(PINNED, at(CLOUD, BESIDE))) == (Target.CLOUD, "gpu-2")


def test_pinned_request_without_a_provider_on_the_premises_is_refused_as_ever() -> None:
    decision = decide(PINNED, at(CLOUD))
    assert (decision.target, decision.reason) == (Target.REFUSE, Reason.PRIVATE_NOT_SERVABLE)


def test_pinned_request_nobody_on_the_premises_can_do_is_not_servable_privately() -> None:
    unable = replace(BESIDE, capabilities=frozenset())
    wants = replace(PINNED, needs=CLOUD.capabilities)
    assert decide(wants, at(CLOUD, unable)).reason is Reason.PRIVATE_NOT_SERVABLE


def test_pinned_request_whose_provider_is_away_is_told_of_capacity_and_not_of_the_cloud() -> None:
    decision = decide(PINNED, at(CLOUD, replace(BESIDE, available=False)))
    assert (decision.target, decision.reason) == (Target.REFUSE, Reason.NO_PREMISES_CAPACITY)


def test_pinned_request_stays_on_its_engine_while_that_keeps_the_promise() -> None:
    decision = decide(PINNED, replace(IDLE, cloud=(CLOUD, BESIDE)))
    assert (decision.target, decision.reason) == (Target.LOCAL, Reason.PINNED)


def test_pinned_request_that_would_be_late_here_goes_next_door() -> None:
    decision = decide(PINNED, Snapshot(engine=SLOW, cloud=(CLOUD, BESIDE)))
    assert went_to(decision) == (Target.CLOUD, "gpu-2")
    assert decision.reason is Reason.PREDICTED_LATE


def test_pinned_request_goes_next_door_while_the_engine_is_down() -> None:
    down = replace(ENGINE, state=EngineState.DOWN)
    assert went_to(decide(PINNED, Snapshot(engine=down, cloud=(CLOUD, BESIDE)))) == (Target.CLOUD, "gpu-2")


def test_pinned_request_waits_for_its_engine_up_to_the_last_moment_next_door_allows() -> None:
    decision = decide(PINNED, replace(FULL, cloud=(CLOUD, BESIDE)))
    assert decision.target is Target.WAIT
    assert decision.leave_at_s is not None
    assert decision.leave_at_s < PINNED.arrived_s + PINNED.ttft_budget_s


def test_unpinned_request_takes_them_in_the_given_order() -> None:
    assert went_to(decide(REQUEST, at(BESIDE, CLOUD))) == (Target.CLOUD, "gpu-2")
    assert went_to(decide(REQUEST, at(CLOUD, BESIDE))) == (Target.CLOUD, "holysheep")


def test_one_that_can_still_be_in_time_goes_before_one_that_cannot() -> None:
    slow = replace(CLOUD, provider="slow", ttft_high_s=1.5)
    assert went_to(decide(REQUEST, at(slow, CLOUD), after_s=0.4)) == (Target.CLOUD, "slow")
    assert went_to(decide(REQUEST, at(slow, CLOUD), after_s=0.6)) == (Target.CLOUD, "holysheep")


def test_quickest_goes_first_when_all_would_be_late() -> None:
    slow = replace(CLOUD, provider="slow", ttft_high_s=1.5)
    assert went_to(decide(REQUEST, at(slow, CLOUD), after_s=1.9)) == (Target.CLOUD, "holysheep")


def test_provider_in_the_middle_of_a_tool_call_goes_on_with_it() -> None:
    talking = replace(REQUEST, stay_with="gpu-2")
    decision = decide(talking, replace(IDLE, cloud=(CLOUD, BESIDE)))
    assert went_to(decision) == (Target.CLOUD, "gpu-2")
    assert decision.reason is Reason.SAME_CONVERSATION


def test_pin_is_kept_in_the_middle_of_a_tool_call_in_the_cloud() -> None:
    talking = replace(REQUEST, residency=Residency.PREMISES, stay_with="holysheep")
    assert went_to(decide(talking, at(CLOUD, BESIDE))) == (Target.CLOUD, "gpu-2")
