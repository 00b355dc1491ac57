"""How many calls are made again."""

from random import Random

import pytest

from node.routing.retry_budget import RetryBudget, RetryLimits, backoff_s


def test_a_fifth_of_recent_calls_may_be_made_again() -> None:
    budget = RetryBudget(RetryLimits())
    for _ in range(100):
        budget.called(0.0)
    assert sum(budget.take(0.0) for _ in range(100)) == 20


def test_thin_traffic_may_still_be_retried() -> None:
    budget = RetryBudget(RetryLimits())
    budget.called(0.0)
    assert [budget.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert budget.allows(10.0)  # half of it is forgotten


def test_looking_takes_nothing() -> None:
    budget = RetryBudget(RetryLimits())
    assert all(budget.allows(0.0) for _ in range(100))


def test_steady_traffic_that_always_fails_makes_no_more_than_a_fifth_on_top() -> None:
    budget, retries, calls = RetryBudget(RetryLimits()), 0, 10_000
    for index in range(calls):
        budget.called(index / 100)
        retries += budget.take(index / 100)
    assert 0.19 * calls < retries <= 0.2 * calls + 3


def test_backoff_is_anything_up_to_its_doubling_limit() -> None:
    assert backoff_s(1, lambda: 0.0) == 0.0
    assert [backoff_s(retry, lambda: 1.0) for retry in (1, 2, 3, 9)] == [0.1, 0.2, 0.4, 2.0]
    waits = [backoff_s(1, Random(seed).random) for seed in range(200)]
    assert min(waits) < 0.01
    assert max(waits) > 0.09
    assert sum(waits) / 200 == pytest.approx(0.05, rel=0.2)


def test_backoff_comes_on_top_of_what_was_asked_for() -> None:
    assert backoff_s(1, lambda: 0.5, retry_after_s=3.0) == 3.05
