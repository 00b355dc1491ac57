import pytest
from _harness.rounds import abba
from _harness.stats import median, median_difference, median_ratio, percentile
from hypothesis import given
from hypothesis import strategies as st


def test_percentile_interpolates_between_ranks() -> None:
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([1, 2, 3, 4, 5], 90) == pytest.approx(4.6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_stays_between_the_extremes(values: list[float], q: float) -> None:
    found = percentile(values, q)
    assert found is not None
    assert min(values) <= found <= max(values)


def test_nothing_measured_is_none_not_zero() -> None:
    assert percentile([], 50) is None
    assert median([None, None]) is None
    assert median_ratio([], []) is None
    assert median_difference([1.0], [None]) is None


def test_percentile_outside_0_to_100_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], 101)


def test_ratio_is_taken_within_rounds_so_a_drifting_machine_does_not_show() -> None:
    assert median_ratio([100.0, 50.0, 10.0], [10.0, 5.0, 1.0]) == 10.0


def test_a_round_without_a_figure_is_left_out_of_the_ratio() -> None:
    assert median_ratio([10.0, None, 30.0], [1.0, 1.0, 0.0]) == 10.0


def test_every_other_round_runs_backwards() -> None:
    assert [arm for _, arm in abba("AB", 4)] == list("ABBAABBA")


def test_an_odd_number_of_rounds_is_refused_because_it_favours_an_order() -> None:
    with pytest.raises(ValueError, match="even"):
        list(abba("AB", 3))
