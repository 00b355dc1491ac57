"""Who waits, who is next, who has to leave."""

from dataclasses import replace

from node.routing.queue import Waiter, WaitingQueue
from node.routing.values import Features, QueueLoad
from tests.routing.stories import PINNED, REQUEST


def named(name: str, request: Features = REQUEST, *, arrived_s: float = 1000.0, ttft_budget_s: float = 2.0) -> Features:
    return replace(request, request_id=name, arrived_s=arrived_s, ttft_budget_s=ttft_budget_s)


def order(queue: WaitingQueue) -> list[str]:
    names = []
    while (head := queue.head()) is not None:
        names.append(head.features.request_id)
        queue.remove(head.features.request_id)
    return names


def test_pinned_go_first_then_the_earliest_deadline_then_the_first_to_come() -> None:
    queue = WaitingQueue()
    queue.add(Waiter(named("late deadline", ttft_budget_s=9), 0.0))
    queue.add(Waiter(named("came second", arrived_s=1000.5, ttft_budget_s=1.5), 0.0))
    queue.add(Waiter(named("came first"), 0.0))
    queue.add(Waiter(named("pinned", PINNED, ttft_budget_s=60), 0.0))
    assert order(queue) == ["pinned", "came first", "came second", "late deadline"]


def test_higher_priority_goes_first_among_those_alike_but_never_before_who_cannot_leave() -> None:
    def of(priority: int, request: Features) -> Features:
        return replace(request, priority=priority)

    queue = WaitingQueue()
    queue.add(Waiter(of(0, named("usual")), 0.0))
    queue.add(Waiter(of(100, named("urgent", arrived_s=1001.0)), 0.0))
    queue.add(Waiter(of(-100, named("idle", ttft_budget_s=0.1)), 0.0))
    queue.add(Waiter(of(0, named("kept")), 0.0, kept=True))
    queue.add(Waiter(of(-100, named("pinned", PINNED)), 0.0))
    queue.add(Waiter(of(5, named("pinned urgent", PINNED, arrived_s=1001.0)), 0.0))
    assert order(queue) == ["pinned urgent", "pinned", "kept", "urgent", "usual", "idle"]


def test_those_whose_time_has_come_are_told_earliest_first() -> None:
    queue = WaitingQueue()
    for name, leave_at_s in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        queue.add(Waiter(named(name), leave_at_s))
    assert queue.next_ask_s() == 1.0
    assert [waiter.features.request_id for waiter in queue.due(2.0)] == ["a", "b"]
    assert queue.due(0.5) == []


def test_empty_queue_has_nobody_and_nothing_to_do() -> None:
    queue = WaitingQueue()
    queue.remove("nobody")
    assert (len(queue), queue.head(), queue.next_ask_s()) == (0, None, None)


def test_waiting_again_replaces_the_old_time() -> None:
    queue = WaitingQueue()
    queue.add(Waiter(named("a"), 1.0))
    queue.add(Waiter(named("a"), 5.0))
    assert len(queue) == 1
    assert queue.next_ask_s() == 5.0


def test_each_request_sees_only_what_is_ahead_of_it() -> None:
    queue = WaitingQueue()
    pinned = replace(named("pinned", PINNED), choices=2, prompt_tokens_estimate=30)
    early, late = replace(named("early"), prompt_tokens_estimate=7), named("late", arrived_s=1001.0)
    queue.add(Waiter(pinned, 0.0))
    queue.add(Waiter(early, 0.0))
    assert queue.load_for(Waiter(pinned, 0.0)) == QueueLoad(depth=2, waited=True)
    assert queue.load_for(Waiter(early, 0.0)) == QueueLoad(
        depth=2, waited=True, sequences_ahead=2, prompt_tokens_ahead=30, kv_tokens_ahead=30
    )
    assert queue.load_for(Waiter(late, 0.0)) == QueueLoad(
        depth=2, waited=False, sequences_ahead=3, prompt_tokens_ahead=37, kv_tokens_ahead=37
    )


def test_cheapest_to_send_away_is_told_to_be_ahead_of_those_behind_it_only() -> None:
    queue = WaitingQueue()
    queue.add(Waiter(named("cheap", arrived_s=1000.0), 0.0, worth=1.0))
    for arrived_s, is_ahead in ((999.0, False), (1001.0, True)):
        cheapest = queue.load_for(Waiter(named("newcomer", arrived_s=arrived_s), 0.0)).cheapest
        assert cheapest is not None
        assert (cheapest.request_id, cheapest.is_ahead) == ("cheap", is_ahead)
