"""The queue's running sums, order and heaps, held against a plain list that is counted anew each time."""

import sys
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from node.routing.queue import Waiter, WaitingQueue
from node.routing.running_sums import RunningSums
from node.routing.values import Residency
from tests.routing.stories import REQUEST


@dataclass(frozen=True)
class Put:
    waiter: Waiter


@dataclass(frozen=True)
class Take:
    name: str


names = st.integers(0, 400).map(str)
waiters = st.builds(
    lambda name, pinned, arrived_s, tokens, cached, choices, ask_at_s, kept, worth, late_s: Waiter(
        replace(
            REQUEST,
            request_id=name,
            residency=Residency.PREMISES if pinned else Residency.ANY,
            arrived_s=1000.0 + arrived_s,
            prompt_tokens_estimate=tokens,
            cached_tokens_estimate=cached,
            choices=choices,
        ),
        ask_at_s=1000.0 + ask_at_s,
        kept=kept,
        worth=None if kept or pinned else worth,
        due_s=1000.0 + arrived_s + REQUEST.ttft_budget_s + late_s,
    ),
    names,
    st.booleans(),
    st.integers(0, 5),
    st.integers(1, 500),
    st.integers(0, 600),
    st.integers(1, 3),
    st.integers(0, 20),
    st.booleans(),
    st.none() | st.integers(0, 50).map(float),
    st.sampled_from([0.0, 0.5, 3.0]),
)
events = st.lists(st.one_of(st.builds(Put, waiters), st.builds(Put, waiters), st.builds(Take, names)), max_size=300)


def played(story: list[Put | Take]) -> tuple[WaitingQueue, dict[str, Waiter]]:
    queue, plain = WaitingQueue(), dict[str, Waiter]()
    for event in story:
        if isinstance(event, Put):
            queue.add(event.waiter)
            plain[event.waiter.features.request_id] = event.waiter
        else:
            queue.remove(event.name)
            plain.pop(event.name, None)
    return queue, plain


@settings(deadline=None)
@given(events, waiters)
def test_what_stands_ahead_is_what_a_count_of_everybody_says(story: list[Put | Take], newcomer: Waiter) -> None:
    queue, plain = played(story)
    assert len(queue) == len(plain)
    assert queue.head() == min(plain.values(), key=lambda waiter: waiter.rank, default=None)
    for asked in [newcomer, *list(plain.values())[:5]]:
        load = queue.load_for(asked)
        ahead = [waiter.features for waiter in plain.values() if waiter.rank < asked.rank]
        known = plain.get(asked.features.request_id)
        assert load.depth == len(plain)
        assert load.waited == (known is not None)
        assert load.kept == (known is not None and known.kept)
        assert load.sequences_ahead == sum(each.choices for each in ahead)
        assert load.prompt_tokens_ahead == sum(each.uncached_tokens_estimate for each in ahead)
        assert load.kv_tokens_ahead == sum(each.prompt_tokens_estimate for each in ahead)


@settings(deadline=None)
@given(events)
def test_who_is_asked_next_is_who_has_the_earliest_time(story: list[Put | Take]) -> None:
    queue, plain = played(story)
    assert queue.next_ask_s() == min((waiter.ask_at_s for waiter in plain.values()), default=None)
    due = queue.due(1010.0)
    assert [waiter.ask_at_s for waiter in due] == sorted(waiter.ask_at_s for waiter in due)
    assert {waiter.features.request_id for waiter in due} == {
        name for name, waiter in plain.items() if waiter.ask_at_s <= 1010.0
    }
    assert len(queue) == len(plain)


@settings(deadline=None)
@given(events)
def test_cheapest_to_send_away_is_a_waiter_of_least_worth(story: list[Put | Take]) -> None:
    queue, plain = played(story)
    cheapest = queue.load_for(Waiter(replace(REQUEST, request_id="newcomer"), 0.0)).cheapest
    worths = [waiter.worth for waiter in plain.values() if waiter.worth is not None]
    if not worths:
        assert cheapest is None
        return
    assert cheapest is not None
    assert cheapest.worth == min(worths)
    assert plain[cheapest.request_id].worth == cheapest.worth
    assert cheapest.prompt_tokens == plain[cheapest.request_id].features.uncached_tokens_estimate


def test_names_are_taken_out_in_order_of_rank_from_many_buckets() -> None:
    queue = WaitingQueue()
    for number in range(1000):
        shuffled = number * 617 % 1000
        queue.add(Waiter(replace(REQUEST, request_id=f"{shuffled:03}", arrived_s=1000.0 + shuffled), 0.0))
    order = []
    while (head := queue.head()) is not None:
        order.append(head.features.request_id)
        queue.remove(head.features.request_id)
    assert order == [f"{number:03}" for number in range(1000)]


def test_heaps_do_not_outgrow_a_queue_that_is_never_empty() -> None:
    queue = WaitingQueue()
    queue.add(Waiter(replace(REQUEST, request_id="stays"), 0.0, worth=0.0))
    for number in range(5_000):
        queue.add(Waiter(replace(REQUEST, request_id=f"{number}"), 1.0 + number, worth=1.0 + number))
        queue.remove(f"{number}")
    assert queue.next_ask_s() == 0.0
    assert max(len(queue._by_time), len(queue._by_worth)) < 100


rows = st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.integers(-50, 50))


@given(st.lists(rows, max_size=40), st.lists(st.tuples(st.integers(0, 39), rows)))
def test_running_sums_are_those_of_the_list(
    plain: list[tuple[int, int, int]], changes: list[tuple[int, tuple[int, int, int]]]
) -> None:
    sums = RunningSums(plain)
    for index, change in changes:
        if index < len(plain):
            x, y, z = plain[index]
            plain[index] = (x + change[0], y + change[1], z + change[2])
            sums.add(index, change)
    for index in range(len(plain) + 1):
        assert sums.before(index) == tuple(sum(row[column] for row in plain[:index]) for column in range(3))


def lines_run(waiting: int) -> int:
    """Lines of Python that looking at a queue of that length takes."""
    queue, counted = WaitingQueue(), 0
    for number in range(waiting):
        queue.add(Waiter(replace(REQUEST, request_id=f"{number:05}", arrived_s=1000.0 + number), 0.0))
    newcomer = Waiter(replace(REQUEST, request_id="newcomer", arrived_s=1e6), 0.0)
    queue.load_for(newcomer)

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal counted
        counted += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        queue.load_for(newcomer)
    finally:
        sys.settrace(before)
    return counted


def test_looking_at_a_queue_ten_times_as_long_takes_hardly_longer() -> None:
    assert lines_run(5_000) <= lines_run(500) + 40
