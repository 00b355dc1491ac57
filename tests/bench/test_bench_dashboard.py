import _dashboard
import pytest


def cell(arm: str, round_: int, *, cpu_s: float, ticks: int = 0) -> _dashboard.Cell:
    return _dashboard.Cell(arm, round_, 10.0, 5000, 0, cpu_s, ticks)


CELLS = [
    cell("nobody", 0, cpu_s=4.0),
    cell("viewers", 0, cpu_s=4.2, ticks=100),
    cell("viewers", 1, cpu_s=4.4, ticks=90),
    cell("nobody", 1, cpu_s=4.2),
]
OPENINGS = [_dashboard.Opening(0.3, 120_000), _dashboard.Opening(0.5, 120_500)]


def test_what_viewers_cost_is_compared_within_the_round() -> None:
    assert _dashboard.feed_share(CELLS) == pytest.approx(0.02)
    share, ticks, failed, paint, wire = _dashboard.bars(CELLS, OPENINGS)
    assert share.measured == pytest.approx(2.0)
    assert ticks.measured == pytest.approx(0.9)
    assert [bar.met for bar in (share, ticks, failed, paint, wire)] == [True] * 5


def test_what_was_not_measured_is_not_met() -> None:
    share, ticks, _, paint, wire = _dashboard.bars([], [])
    assert not any(bar.met for bar in (share, ticks, paint, wire))
