"""Shares of the engine by values: who is due later, by how much, and for how long that is remembered."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.routing.fairness import FairShares
from node.routing.values import Features
from tests.routing.stories import PINNED, REQUEST


def of(tenant: str, name: str = "r", request: Features = REQUEST, **more: object) -> Features:
    return replace(request, tenant=tenant, request_id=name, **more)  # type: ignore[arg-type]


def test_caller_is_due_later_by_what_its_earlier_requests_take() -> None:
    shares = FairShares()
    for count in range(3):
        assert shares.due_s(of("flood"), 1000.0) == pytest.approx(1002.0 + 0.5 * count)
        shares.charge(of("flood"), 0.5, 1000.0)
    assert shares.due_s(of("other"), 1000.0) == 1002.0


def test_seconds_of_the_engine_count_as_many_times_as_there_are_callers() -> None:
    shares = FairShares()
    shares.charge(of("other"), 0.5, 1000.0)
    shares.charge(of("flood"), 0.5, 1000.0)
    assert shares.due_s(of("flood"), 1000.0) == pytest.approx(1002.0 + 0.5 * 2)


def test_no_request_is_put_off_by_more_than_it_may_wait() -> None:
    shares = FairShares()
    for _ in range(1000):
        shares.charge(of("flood"), 1.0, 1000.0)
    assert shares.due_s(of("flood"), 1000.0) == pytest.approx(1002.0 + 2.0)
    for _ in range(1000):
        shares.charge(of("flood", request=PINNED), 1.0, 1000.0)
    assert shares.due_s(of("flood", request=PINNED), 1000.0) == pytest.approx(1002.0 + 60.0)
    assert shares.due_s(of("flood"), 1000.0) == pytest.approx(1002.0 + 2.0)
    assert shares.due_s(of("flood"), 1060.0) == 1002.0


def test_callers_are_forgotten_when_their_time_is_over() -> None:
    shares = FairShares()
    for number in range(10_000):
        now_s = 1000.0 + number * 0.01
        shares.charge(of(f"caller-{number % 700}-{number}"), 0.001, now_s)
        shares.charge(of("steady"), 0.001, now_s)
    assert len(shares._served_until_s) == len(shares._ends) < 300


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 5), st.floats(0, 2)), min_size=2, max_size=40))
def test_requests_of_one_caller_are_due_in_the_order_of_their_deadlines(
    story: list[tuple[float, float, float]],
) -> None:
    shares, now_s, due = FairShares(), 1000.0, []
    for number, (pause_s, budget_s, work_s) in enumerate(story):
        now_s += pause_s
        features = of("only", f"{number:02}", arrived_s=now_s, ttft_budget_s=budget_s)
        due_s = shares.due_s(features, now_s)
        deadline_s = now_s + budget_s
        assert due_s >= deadline_s
        shares.charge(features, work_s, now_s)
        shares.waits(features, due_s)
        due.append((deadline_s, due_s))
    assert [due_s for _, due_s in sorted(due)] == sorted(due_s for _, due_s in due)


def test_one_that_waits_no_longer_is_not_looked_at() -> None:
    shares = FairShares()
    shares.charge(of("flood"), 5.0, 1000.0)
    long = of("flood", "long", ttft_budget_s=2.5)
    shares.waits(long, 1002.5)
    assert shares.due_s(of("flood"), 1000.0) == 1002.5
    shares.left(long)
    assert shares.due_s(of("flood"), 1000.0) == 1004.0
    assert shares._waiting == {}
