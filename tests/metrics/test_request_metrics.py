"""What Prometheus is told of requests: exact counts, and promises kept and broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from node.dispatch.outcome import Ending, Foreseen, Outcome
from node.metrics.requests import Promise, RequestMetrics, promise_of
from node.money import Usage
from node.routing.values import Reason
from tests.outcomes import SERVED_HERE

CLOUD = replace(
    SERVED_HERE,
    tenant="a",
    backend="holysheep",
    served_model="big",
    reason=Reason.LAST_MOMENT,
    queue_s=0.3,
    ttft_s=0.5,
    total_s=1.4,
    usage=Usage(10, 10),
    cost_nano_usd=15_000,
    reference_nano_usd=20_000,
    cloud_nano_usd=15_000,
)
LOCAL = replace(
    CLOUD,
    backend="local",
    reason=Reason.WITHIN_BUDGET,
    cost_nano_usd=0,
    foreseen=(
        Foreseen(predicted_s=0.2, took_s=0.4, queued=False),
        Foreseen(predicted_s=9.0, took_s=9.0, queued=True),
    ),
)
REFUSED = replace(
    CLOUD, ending=Ending.REFUSED, backend=None, ttft_s=None, usage=None, cost_nano_usd=0,
    reference_nano_usd=None, cloud_nano_usd=None, reason=Reason.BUDGET_SPENT,
)  # fmt: skip


def samples(*outcomes: Outcome) -> dict[str, float]:
    metrics, registry = RequestMetrics(["demo"]), CollectorRegistry()
    registry.register(metrics)
    for outcome in outcomes:
        metrics.add(outcome)
    lines = [line.rsplit(" ", 1) for line in generate_latest(registry).decode().splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize(
    ("outcome", "promise"),
    [
        (CLOUD, Promise.KEPT),
        (replace(CLOUD, ttft_s=2.0), Promise.KEPT),
        (replace(CLOUD, ttft_s=2.1), Promise.LATE),
        (replace(CLOUD, ttft_s=2.1, ending=Ending.CLIENT_CLOSED), Promise.LATE),
        (replace(CLOUD, ttft_s=0.1, ending=Ending.FAILED), Promise.KEPT),
        (REFUSED, Promise.UNANSWERED),
        (replace(REFUSED, ending=Ending.FAILED), Promise.UNANSWERED),
        (replace(REFUSED, ending=Ending.REJECTED), None),
        (replace(REFUSED, ending=Ending.CLIENT_CLOSED), None),
        (replace(CLOUD, ttft_s=None), None),
    ],
)
def test_request_without_an_answer_breaks_the_promise_and_a_client_that_leaves_does_not(
    outcome: Outcome, promise: Promise | None
) -> None:
    assert promise_of(outcome) is promise


def test_attainment_can_be_read_from_the_first_scrape_on() -> None:
    assert {name: value for name, value in samples().items() if "slo" in name} == {
        f'spillway_slo_requests_total{{model="demo",result="{result}"}}': 0.0 for result in Promise
    }


def test_money_is_told_in_dollars_and_what_stayed_here_is_saved() -> None:
    said = samples(CLOUD, LOCAL, LOCAL, REFUSED)
    assert said['spillway_spend_usd_total{backend="holysheep",model="demo"}'] == pytest.approx(15e-6)
    assert said['spillway_cloud_price_usd_total{model="demo"}'] == pytest.approx(45e-6)
    assert said['spillway_list_price_usd_total{model="demo"}'] == pytest.approx(60e-6)
    assert said['spillway_saved_usd{model="demo"}'] == pytest.approx(30e-6)


def test_requests_are_told_apart_by_who_served_them_and_why() -> None:
    said = samples(CLOUD, LOCAL, LOCAL, REFUSED)
    counted = {name: value for name, value in said.items() if name.startswith("spillway_requests_total")}
    assert sorted(counted.values()) == [1.0, 1.0, 2.0]
    none = 'spillway_requests_total{backend="none",ending="refused",model="demo",reason="budget_spent"}'
    assert counted[none] == 1.0


def test_histogram_counts_every_value_at_or_below_its_bound() -> None:
    said = samples(CLOUD, replace(CLOUD, ttft_s=0.51), replace(CLOUD, ttft_s=100.0))
    of = 'spillway_time_to_first_token_seconds_bucket{backend="holysheep",le="%s",model="demo"}'
    assert [said[of % le] for le in ("0.25", "0.5", "1.0", "32.0", "+Inf")] == [0.0, 1.0, 2.0, 2.0, 3.0]
    total = 'spillway_time_to_first_token_seconds_sum{backend="holysheep",model="demo"}'
    assert said[total] == pytest.approx(101.01)


def test_predicted_and_measured_are_of_the_same_requests_and_moment() -> None:
    said = samples(LOCAL, CLOUD)
    assert said['spillway_ttft_predicted_seconds_sum{model="demo"}'] == 0.2
    assert said['spillway_ttft_measured_seconds_sum{model="demo"}'] == 0.4
    assert said['spillway_ttft_measured_seconds_count{model="demo"}'] == 1.0


def test_time_per_output_token_leaves_the_first_one_out() -> None:
    said = samples(CLOUD)
    name = 'spillway_time_per_output_token_seconds_sum{backend="holysheep",model="demo"}'
    assert said[name] == pytest.approx(0.1)
