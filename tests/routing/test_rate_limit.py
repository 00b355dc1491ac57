"""So much per minute: full at first, back evenly, and never more than it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.routing.rate_limit import Allowance


def test_all_of_it_is_there_at_first_and_comes_back_evenly() -> None:
    allowance = Allowance(60)
    assert (allowance.left(5.0), allowance.full_in_s(5.0)) == (60, 0.0)
    for _ in range(60):
        assert allowance.wait_s(1, 5.0) == 0.0
        allowance.take(1, 5.0)
    assert (allowance.left(5.0), allowance.full_in_s(5.0)) == (0, 60.0)
    assert allowance.wait_s(1, 5.0) == pytest.approx(1.0)
    assert allowance.left(35.0) == 30
    assert allowance.left(1000.0) == 60


def test_what_is_given_back_is_there_again() -> None:
    allowance = Allowance(600)
    allowance.take(600, 0.0)
    allowance.take(-500, 0.0)
    assert allowance.left(0.0) == 500
    allowance.take(-5000, 0.0)
    assert allowance.left(0.0) == 600
    allowance.take(600, 0.0)
    assert allowance.left(0.0) == 0


def test_what_was_used_beyond_it_is_owed() -> None:
    allowance = Allowance(60)
    allowance.take(90, 0.0)
    assert allowance.left(20.0) == 0
    assert allowance.left(40.0) == 10


@given(
    per_minute=st.integers(1, 10**9),
    steps=st.lists(st.tuples(st.integers(1, 1000), st.floats(0.0, 30.0)), max_size=60),
)
def test_never_more_than_a_full_one_and_what_came_back_is_taken(
    per_minute: int, steps: list[tuple[int, float]]
) -> None:
    allowance, now_s, taken = Allowance(per_minute), 1e6, 0
    for amount, pause_s in steps:
        now_s += pause_s
        if amount <= per_minute and allowance.wait_s(amount, now_s) == 0.0:
            assert allowance.left(now_s) >= amount
            allowance.take(amount, now_s)
            taken += amount
        assert 0 <= allowance.left(now_s) <= per_minute
    assert taken <= per_minute * (1 + (now_s - 1e6) / 60) + 1


@given(per_minute=st.integers(1, 10**6), amount=st.integers(1, 10**6))
def test_whoever_waits_as_long_as_told_is_let_in(per_minute: int, amount: int) -> None:
    allowance = Allowance(per_minute)
    allowance.take(per_minute, 1e6)
    amount = min(amount, per_minute)
    wait_s = allowance.wait_s(amount, 1e6)
    assert allowance.wait_s(amount, 1e6 + wait_s + 1e-6) == 0.0
