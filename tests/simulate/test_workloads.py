"""Workloads from a seed: the same everywhere, in order, and shaped like the traces they imitate."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from statistics import fmean, pvariance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import SettingsError
from node.simulate.values import TraceRequest
from node.simulate.workloads import MEAN_RATES, WorkloadKind, generate

SECONDS = 2100
SEEDS = range(6)

kinds = st.sampled_from(WorkloadKind)


@dataclass(frozen=True)
class Published:
    """Of the published trace: requests/s, index of dispersion over 1, 10 and 60 s, mean and p95 of both lengths."""

    rate: float
    dispersion: tuple[float, float, float]
    prompt: tuple[float, float]
    output: tuple[float, float]


PUBLISHED = {
    WorkloadKind.AZURE_CODE: Published(3.18, (13.2, 70.0, 161.6), (2033, 7328), (27, 87)),
    WorkloadKind.BATCH_TENANTS: Published(9.92, (21.9, 106.3, 504.2), (725, 1883), (66, 270)),
    WorkloadKind.POISSON: Published(5.87, (1.3, 3.5, 15.6), (1246, 4086), (203, 451)),
    WorkloadKind.LONG_PROMPTS: Published(3.17, (1.1, 1.3, 2.4), (12934, 42140), (345, 708)),
    WorkloadKind.REASONING: Published(4.84, (2.2, 4.6, 15.1), (2624, 14171), (1567, 6504)),
}


@cache
def made(kind: WorkloadKind, seed: int) -> list[TraceRequest]:
    return list(generate(kind, seconds=SECONDS, seed=seed))


def dispersion(requests: list[TraceRequest], window_s: int) -> float:
    """Variance of the requests per window over their mean: 1 for Poisson, more for bursts."""
    count = Counter(int(request.arrival_s // window_s) for request in requests)
    counts = [count[window] for window in range(SECONDS // window_s)]
    return pvariance(counts) / fmean(counts)


def p95(values: list[int]) -> int:
    return sorted(values)[int(0.95 * len(values))]


@pytest.mark.parametrize("kind", WorkloadKind)
def test_rate_and_burstiness_are_close_to_the_published_trace(kind: WorkloadKind) -> None:
    published = PUBLISHED[kind]
    assert fmean(len(made(kind, seed)) / SECONDS for seed in SEEDS) == pytest.approx(published.rate, rel=0.2)
    for window_s, expected in zip((1, 10, 60), published.dispersion, strict=True):
        assert fmean(dispersion(made(kind, seed), window_s) for seed in SEEDS) == pytest.approx(expected, rel=0.4)


@pytest.mark.parametrize("kind", WorkloadKind)
def test_lengths_are_close_to_the_published_trace(kind: WorkloadKind) -> None:
    published = PUBLISHED[kind]
    requests = [request for seed in SEEDS for request in made(kind, seed)]
    for values, (mean, largest) in (
        ([request.prompt_tokens for request in requests], published.prompt),
        ([request.output_tokens for request in requests], published.output),
    ):
        assert fmean(values) == pytest.approx(mean, rel=0.1)
        assert p95(values) == pytest.approx(largest, rel=0.1)


def test_long_prompts_find_a_third_of_their_tokens_in_the_cache() -> None:
    requests = made(WorkloadKind.LONG_PROMPTS, 0)
    hits = sum(request.prefix_hit_tokens for request in requests)
    assert hits / sum(request.prompt_tokens for request in requests) == pytest.approx(0.35, abs=0.05)


def test_batches_come_from_a_few_tenants() -> None:
    clients = Counter(request.client for request in made(WorkloadKind.BATCH_TENANTS, 0))
    assert 3 <= len(clients) <= 5
    assert clients.most_common(1)[0][1] > 0.5 * clients.total()


@settings(max_examples=60)
@given(kinds, st.integers(), st.floats(0.5, 50), st.none() | st.floats(0.1, 50))
def test_requests_are_sorted_positive_and_inside_the_time(
    kind: WorkloadKind, seed: int, seconds: float, rate: float | None
) -> None:
    requests = list(generate(kind, seconds=seconds, seed=seed, rate=rate))
    assert all(0 <= request.arrival_s < seconds for request in requests)
    assert all(first.arrival_s <= second.arrival_s for first, second in pairwise(requests))
    for request in requests:
        assert request.prompt_tokens >= 1
        assert request.output_tokens >= 1
        assert 0 <= request.prefix_hit_tokens <= request.prompt_tokens


@settings(max_examples=20)
@given(kinds, st.integers())
def test_same_seed_makes_the_same_workload_and_another_one_does_not(kind: WorkloadKind, seed: int) -> None:
    first, again, other = (list(islice(generate(kind, seconds=1e9, seed=s), 20)) for s in (seed, seed, seed + 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (WorkloadKind.AZURE_CODE, TraceRequest(13.276, 1356, 9)),
        (WorkloadKind.BATCH_TENANTS, TraceRequest(31.965, 1718, 227, client="extract")),
        (WorkloadKind.POISSON, TraceRequest(23.34, 2506, 154)),
        (WorkloadKind.LONG_PROMPTS, TraceRequest(30.334, 7460, 386, 512)),
        (WorkloadKind.REASONING, TraceRequest(27.105, 153, 755, client="ask")),
    ],
)
def test_seed_stands_for_the_same_requests_in_every_python(kind: WorkloadKind, first: TraceRequest) -> None:
    """The values were the same under 3.11, 3.12 and 3.13."""
    assert next(islice(generate(kind, seconds=1e9, seed=3), 100, None)) == first


@pytest.mark.parametrize("kind", WorkloadKind)
def test_longer_workload_begins_with_the_shorter_one(kind: WorkloadKind) -> None:
    shorter = list(generate(kind, seconds=100, seed=1))
    assert list(islice(generate(kind, seconds=300, seed=1), len(shorter))) == shorter


@pytest.mark.parametrize("kind", WorkloadKind)
def test_another_rate_compresses_time(kind: WorkloadKind) -> None:
    usual = list(islice(generate(kind, seconds=1e9, seed=1), 300))
    doubled = list(islice(generate(kind, seconds=1e9, seed=1, rate=2 * MEAN_RATES[kind]), 300))
    for one, other in zip(usual, doubled, strict=True):
        assert other.arrival_s == pytest.approx(one.arrival_s / 2, abs=0.002)
        assert other.prompt_tokens == one.prompt_tokens


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_time_or_rate_that_is_none_is_refused_at_once(wrong: float) -> None:
    with pytest.raises(SettingsError, match="seconds"):
        generate(WorkloadKind.POISSON, seconds=wrong, seed=0)
    with pytest.raises(SettingsError, match="rate"):
        generate(WorkloadKind.POISSON, seconds=1, seed=0, rate=wrong)
