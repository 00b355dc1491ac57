"""Which of several providers is taken."""

from collections import Counter
from random import Random

import pytest

from node.routing.balancer import Candidate, PeakEwma, choose


def candidate(name: str, weight: float = 1.0, ttft_s: float = 0.5, in_flight: int = 0) -> Candidate:
    return Candidate(name=name, weight=weight, ttft_s=ttft_s, in_flight=in_flight)


def test_nobody_is_chosen_of_nobody_and_the_only_one_of_one() -> None:
    assert choose([], Random(1).random) is None
    assert choose([candidate("a")], Random(1).random) == "a"


def test_quicker_one_is_taken() -> None:
    pair = [candidate("slow", ttft_s=2.0), candidate("quick", ttft_s=0.4)]
    assert {choose(pair, Random(seed).random) for seed in range(50)} == {"quick"}


def test_one_with_more_under_way_is_passed_over() -> None:
    pair = [candidate("busy", in_flight=3), candidate("idle", ttft_s=0.6)]
    assert {choose(pair, Random(seed).random) for seed in range(50)} == {"idle"}


def test_unmeasured_ones_are_told_apart_by_weight() -> None:
    pair = [candidate("light", 0.5, 0.0), candidate("heavy", 2.0, 0.0)]
    assert choose(pair, Random(1).random) == "heavy"


def test_equals_are_drawn_at_random() -> None:
    random = Random(1)
    drawn = Counter(choose([candidate("a"), candidate("b")], random.random) for _ in range(1000))
    assert 400 < drawn["a"] < 600


def test_what_is_under_way_is_shared_by_weight() -> None:
    """Two GPU servers at 2.0, HolySheep at 1.5, OpenAI at 0.5; calls come faster than they end."""
    random, weights = Random(7), {"gpu-1": 2.0, "gpu-2": 2.0, "holysheep": 1.5, "openai": 0.5}
    under_way = dict.fromkeys(weights, 0)
    for _ in range(600):
        name = choose(
            [candidate(name, weight, 0.5, under_way[name]) for name, weight in weights.items()], random.random
        )
        assert name is not None
        under_way[name] += 1
    for name, weight in weights.items():
        assert under_way[name] == pytest.approx(600 * weight / 6.0, rel=0.15)


def test_no_stampede_to_whoever_looked_best() -> None:
    random = Random(3)
    many = [candidate(f"p{index}", ttft_s=0.5 if index else 0.49) for index in range(10)]
    drawn = Counter(choose(many, random.random) for _ in range(1000))
    assert drawn["p0"] < 300


def test_average_jumps_up_at_once_and_comes_down_slowly() -> None:
    average = PeakEwma()
    assert average.value_s(0.0) == 0.0
    average.add(0.5, 0.0)
    average.add(3.0, 0.1)
    assert average.value_s(0.1) == 3.0
    average.add(0.5, 0.2)
    assert 2.9 < average.value_s(0.2) < 3.0


def test_slow_one_that_is_left_alone_is_tried_again_one_day() -> None:
    average = PeakEwma()
    average.add(10.0, 0.0)
    assert average.value_s(30.0) < 0.5
    assert average.value_s(10.0) == pytest.approx(10.0 / 2.718, rel=0.01)
