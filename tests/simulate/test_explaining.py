"""Why a policy paid more than another."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from node.cli import main
from node.errors import SettingsError
from node.money import Price
from node.routing.values import Reason, Target
from node.simulate import explained
from node.simulate.comparing import Question
from node.simulate.explaining import Explanation, attribute, explain
from node.simulate.profiles import find_profile
from node.simulate.providers import Provider
from node.simulate.replay import Fate, Promise, Replay
from node.simulate.trace import CapCount
from node.simulate.values import TraceRequest
from node.simulate.workloads import WorkloadKind, generate


def question(trace: list[TraceRequest], pinned: frozenset[int] = frozenset()) -> Question:
    return Question(
        title="test",
        trace=trace,
        speed=1.0,
        capped=CapCount(),
        profile=find_profile("gpu-medium"),
        provider=Provider(price=Price(Decimal(1), Decimal(2))),
        promise=Promise(ttft_budget_s=1.0, pinned=pinned),
        seed=0,
    )


def here(at_s: float, ttft_s: float, reason: Reason = Reason.WITHIN_BUDGET) -> Fate:
    return Fate(at_s, reason, Target.LOCAL, ttft_s=ttft_s)


def away(at_s: float, cost_nano_usd: int, reason: Reason = Reason.LAST_MOMENT) -> Fate:
    return Fate(at_s, reason, Target.CLOUD, ttft_s=0.5, cost_nano_usd=cost_nano_usd)


CALM = [TraceRequest(10.0 * at, 100, 10) for at in range(4)]


def two(ours: list[Fate | None], theirs: list[Fate | None], asked: Question) -> Explanation:
    return attribute(asked, "ours", Replay(ours), "theirs", Replay(theirs))


def test_the_difference_is_that_of_the_requests_which_only_one_of_the_two_sent() -> None:
    ours: list[Fate | None] = [away(0.0, 5), here(10.0, 0.1), away(20.5, 7, Reason.PREDICTED_LATE), away(30.0, 9)]
    theirs: list[Fate | None] = [here(0.0, 0.1), away(10.0, 4), here(20.0, 0.1), away(30.0, 9)]
    found = two(ours, theirs, question(CALM))
    assert found.excess_nano_usd == 5 + 7 - 4
    assert [(group.reason, group.excess_nano_usd) for group in found.only_policy] == [
        ("predicted_late", 7),
        ("last_moment", 5),
    ]
    assert [(group.reason, group.excess_nano_usd) for group in found.only_other] == [("within_budget", -4)]
    assert (found.both, found.both_excess_nano_usd) == (1, 0)
    assert sum(spell.excess_nano_usd for spell in found.spells) == found.excess_nano_usd


def test_a_rush_is_when_more_comes_than_the_engine_can_do() -> None:
    trace = [TraceRequest(0.0, 100, 10)] + [TraceRequest(50.0, 8000, 10)] * 20
    ours: list[Fate | None] = [away(each.arrival_s, 1) for each in trace]
    theirs: list[Fate | None] = [here(each.arrival_s, 0.1) for each in trace]
    found = two(ours, theirs, question(trace))
    assert {(group.rush, group.requests) for group in found.only_policy} == {(False, 1), (True, 20)}


@pytest.mark.parametrize(
    ("later_prompt", "later_starts_s", "too_early"),
    [(100, 0.6, 1), (99, 0.6, 0), (100, 0.3, 0), (100, 0.95, 0)],
    ids=["in its place", "with a shorter prompt", "started before it left", "past its deadline"],
)
def test_one_was_sent_too_early_if_a_later_one_as_long_was_served_before_its_deadline(
    later_prompt: int, later_starts_s: float, too_early: int
) -> None:
    trace = [TraceRequest(0.0, 100, 10), TraceRequest(0.2, later_prompt, 10)]
    ours: list[Fate | None] = [away(0.5, 5), here(later_starts_s, later_starts_s + 0.1 - 0.2)]
    theirs: list[Fate | None] = [here(0.0, 0.1), here(0.3, 0.2)]
    (group,) = two(ours, theirs, question(trace)).only_policy
    assert group.too_early == too_early


def test_the_place_of_one_that_cannot_leave_is_not_to_be_had() -> None:
    trace = [TraceRequest(0.0, 100, 10), TraceRequest(0.2, 100, 10)]
    ours: list[Fate | None] = [away(0.5, 5), here(0.6, 0.5)]
    (group,) = two(ours, [here(0.0, 0.1), here(0.3, 0.2)], question(trace, frozenset({1}))).only_policy
    assert group.too_early == 0


@pytest.mark.parametrize("other", ["depth:2", "cloud", "depth", "clairvoyant"])
def test_the_rows_add_up_to_the_difference(other: str) -> None:
    trace = list(generate(WorkloadKind.POISSON, seconds=30, seed=1, rate=12))
    found = explain(question(trace, frozenset(range(0, len(trace), 5))), "overflow", other)
    groups = (*found.only_policy, *found.only_other)
    assert sum(group.excess_nano_usd for group in groups) + found.both_excess_nano_usd == found.excess_nano_usd
    assert sum(group.requests for group in found.only_policy) + found.both == found.policy.sent
    assert sum(group.requests for group in found.only_other) + found.both == found.other.sent
    assert 0 < (found.policy.step_tokens or 0) <= found.most_step_tokens


def test_no_depth_that_keeps_the_promise_is_told() -> None:
    asked = question([TraceRequest(0.0, 100_000, 10)] * 3)
    with pytest.raises(SettingsError, match="no fixed depth keeps 99%"):
        explain(replace(asked, promise=Promise(ttft_budget_s=0.01)), "overflow", "depth")


def test_nothing_to_explain_is_said_so() -> None:
    fates: list[Fate | None] = [here(each.arrival_s, 0.1) for each in CALM]
    said = explained.text(two(fates, fates, question(CALM)))
    assert said.splitlines()[0].startswith("why ours paid $0.000000 more than theirs")
    assert "most of it" not in said


def test_the_command_prints_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    short = ["simulate", "poisson", "--seconds", "20", "--load", "1.5", "--policy", "overflow"]
    assert main([*short, "--explain", "depth:1", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "why overflow paid $" in said
    assert "sent by depth:1 only" in said
    why = json.loads(path.read_text())["explanation"]
    assert why["policy"]["policy"] == "overflow"
    assert why["other"]["policy"] == "depth:1"
    rows = [*why["sent_by_policy_only"], *why["sent_by_other_only"]]
    assert sum(row["excess_usd"] for row in rows) == pytest.approx(why["excess_usd"])


def test_what_cannot_be_compared_with_is_refused_before_anything_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "poisson", "--explain", "magic"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "magic" in said.err
    two_clouds = ["--provider", "a", "--provider", "b", "--policy", "overflow", "--seconds", "5"]
    assert main(["simulate", "poisson", *two_clouds, "--explain", "clairvoyant"]) == 1
    assert "one provider" in capsys.readouterr().err
