"""The policy bench: its cells worked out on a small workload, and its bars by made-up cells."""

import math
from dataclasses import replace
from pathlib import Path

import _policy
import pytest
from _harness.process import CannotRun
from _policy_cost import decision_costs
from _policy_lookahead import HEADER as LOOKAHEAD_HEADER
from _policy_lookahead import lookahead_row
from _policy_trouble import HEADER, trouble_rows

from node.simulate.profiles import find_profile
from node.simulate.providers import Provider
from node.simulate.replay import Outcome, Promise
from node.simulate.trace import write_trace
from node.simulate.values import TraceRequest
from node.simulate.workloads import WorkloadKind

KEPT = Outcome(
    requests=1000,
    spillable=800,
    in_budget_share=0.995,
    pinned_in_budget_share=1.0,
    cloud_share=0.005,
    spend_nano_usd=1_000,
    ttft_p50_s=0.1,
    ttft_p95_s=0.5,
    ttft_p99_s=0.9,
    utilisation=0.8,
    preemptions=0,
)
CELL = _policy.Cell(
    trace="calm",
    profile="gpu-large",
    cloud=_policy.CLOUDS[0],
    load=0.7,
    calm=True,
    requests=1000,
    speed=2.0,
    outcome=KEPT,
    alone_share=1.0,
    pinned_kept_share=1.0,
    bill_nano_usd=10_000,
    bound_nano_usd=900,
    clairvoyant_nano_usd=950,
    depth=8,
    depth_nano_usd=1_000,
    predicted=replace(KEPT, spend_nano_usd=1_200),
    took_s=1.0,
)
COSTS_US = {10: 20.0, 100: 25.0, 1_000: 30.0, 10_000: 40.0}


def spending(nano_usd: int) -> Outcome:
    return replace(KEPT, spend_nano_usd=nano_usd)


def missed(*cells: _policy.Cell, costs_us: dict[int, float] = COSTS_US) -> list[str]:
    return [bar.name for bar in _policy.bars(cells, costs_us) if not bar.met]


def test_every_bar_is_met_where_every_promise_is_kept() -> None:
    assert missed(CELL, replace(CELL, load=3.0)) == []


def test_nothing_worked_out_is_nothing_met() -> None:
    assert len(missed(costs_us={})) == len(_policy.bars([], {}))


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (replace(CELL, outcome=replace(KEPT, in_budget_share=0.989)), "spillable requests inside the budget"),
        (replace(CELL, pinned_kept_share=0.98), "pinned requests inside the budget"),
        (replace(CELL, outcome=replace(KEPT, cloud_share=0.011)), "calm at load 0.7"),
        (replace(CELL, depth_nano_usd=999), "spend over the best fixed depth's"),
    ],
)
def test_one_bad_cell_among_good_ones_misses_its_bar(cell: _policy.Cell, name: str) -> None:
    (only,) = missed(CELL, cell, CELL)
    assert only.startswith(name)


def test_the_mean_over_the_clairvoyant_has_a_bar_of_its_own() -> None:
    assert missed(replace(CELL, clairvoyant_nano_usd=900)) == ["spend over the clairvoyant's, mean"]
    assert missed(CELL, CELL, CELL, replace(CELL, clairvoyant_nano_usd=810)) == []
    assert missed(*[CELL] * 9, replace(CELL, clairvoyant_nano_usd=750)) == ["spend over the clairvoyant's"]


def test_spending_less_than_the_clairvoyant_makes_up_for_nothing_elsewhere() -> None:
    dear, cheap = replace(CELL, clairvoyant_nano_usd=810), replace(CELL, clairvoyant_nano_usd=4_000)
    assert missed(dear, cheap) == ["spend over the clairvoyant's, mean"]


def test_the_worst_cells_are_named() -> None:
    late = replace(CELL, trace="bursty", outcome=replace(KEPT, in_budget_share=0.5))
    (first, *_) = [line for line in _policy.worst([CELL, late]).splitlines() if "in budget" in line]
    assert "50.0%" in first
    assert "bursty x 0.7" in first


def test_where_next_to_nothing_has_to_be_spent_the_difference_counts_instead_of_the_ratio() -> None:
    little = replace(CELL, outcome=spending(120), clairvoyant_nano_usd=50, depth_nano_usd=50)
    assert little.over(little.clairvoyant_nano_usd) is None
    assert missed(CELL, little) == []
    assert len(missed(CELL, replace(little, outcome=spending(151)))) == 1


def test_a_calm_trace_may_spend_at_a_higher_load() -> None:
    assert missed(CELL, replace(CELL, load=1.0, outcome=replace(KEPT, cloud_share=0.5))) == []


def test_deciding_may_cost_fifty_microseconds_and_grow_with_the_logarithm() -> None:
    assert len(missed(CELL, costs_us={**COSTS_US, 1_000: 51.0})) == 1
    assert len(missed(CELL, costs_us={**COSTS_US, 10_000: 81.0})) == 1


def test_the_best_depth_is_the_cheapest_that_keeps_the_promise() -> None:
    late = replace(KEPT, in_budget_share=0.98, spend_nano_usd=1)
    assert _policy.best_depth([(0, spending(30)), (4, spending(20)), (8, late)]) == (4, spending(20))
    assert _policy.best_depth([(8, late)]) is None


def test_a_cell_holds_what_each_policy_came_to(tmp_path: Path) -> None:
    requests = [TraceRequest(index * 0.02, 400 + 40 * (index % 7), 20 + index % 30) for index in range(300)]
    write_trace(tmp_path / "even.csv", requests)
    (source,) = _policy.sources(tmp_path, quick=True, seed=1)
    done = _policy.cell(_policy.Job(source, "gpu-large", _policy.CLOUDS[0], 1.5, (0, 8), 1))
    assert (done.trace, done.requests, done.calm) == ("even", 300, False)
    assert done.outcome.spillable == 240
    assert done.bound_nano_usd <= done.bill_nano_usd
    assert 0 < done.alone_share <= 1
    (line,) = _policy.rows([done])
    assert len(line) == len(_policy.HEADER)
    (shown,) = _policy.tables([done])
    assert "gpu-large, cloud TTFT 0.35 s" in shown


def test_without_traces_workloads_are_made_up() -> None:
    made = _policy.sources(None, quick=True, seed=1)
    assert [source.name for source in made] == list(WorkloadKind)
    assert [source.name for source in made if source.calm] == [WorkloadKind.POISSON]


def test_a_folder_without_traces_cannot_be_benched(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="no traces"):
        _policy.sources(tmp_path, quick=False, seed=1)


def test_the_cost_of_deciding_is_measured_at_every_length() -> None:
    costs_us = decision_costs((4, 40), passes=10, best_of=1)
    assert list(costs_us) == [4, 40]
    assert all(math.isfinite(cost) and cost > 0 for cost in costs_us.values())


def test_troubles_are_shown_beside_what_comes_of_the_same_trace_without_them() -> None:
    trace = [TraceRequest(number / 20, 400, 100) for number in range(1200)]
    profile = replace(find_profile("cpu-demo"), max_sequences=4)
    provider = Provider(price=_policy.PRICE, ttft_median_s=0.3, ttft_sigma=0.0)
    rows = trouble_rows("steady", 1.0, trace, profile, provider, Promise(ttft_budget_s=1.0))
    assert [row[2] for row in rows[:2]] == ["none", "outage"]
    assert rows[2][2].endswith("calls a minute")
    assert {len(row) for row in rows} == {len(HEADER)}
    failed = [int(row[6].replace(",", "")) for row in rows]
    assert failed[0] == 0
    assert min(failed[1:]) > 0


def test_lookaheads_stand_beside_the_policy_over_the_clairvoyant() -> None:
    profile, promise = find_profile("gpu-medium"), Promise(ttft_budget_s=1.0)
    trace = [TraceRequest(number / 20, 1500, 10) for number in range(50)]
    provider = Provider(price=_policy.PRICE)
    spends = {"spend_nano_usd": 300, "clairvoyant_nano_usd": 200}
    row = lookahead_row("steady", 1.0, trace, profile, provider, promise, **spends)
    assert len(row) == len(LOOKAHEAD_HEADER)
    assert row[:3] == ["steady", "1", "1.50"]
    assert all(float(ratio) > 0 for ratio in row[3:-1])
