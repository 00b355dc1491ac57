"""What the demo makes of what its clients saw."""

import json
from dataclasses import replace

from _demo.day import Request
from _demo.pace import Pace
from _demo.told import Change, End, Span, Told, engine_away, meanwhile, overflow, told
from _harness.load import Record

REQUEST = Request(1.0, "chat", pinned=False, budget_s=1.0, body={})
HEADERS = {
    "x-spillway-backend": "holysheep",
    "x-spillway-reason": "last_moment",
    "x-spillway-queue-ms": "410.5",
    "X-Request-Id": "abc",
}
WHOLE = Record(0, 20.0, 0.9, 0.7, (), 200, HEADERS, {"completion_tokens": 7, "cost_usd": 0.00003129}, None)
REFUSAL = json.dumps({"error": {"message": "No.", "code": "insufficient_quota"}})
LEFT = Told("burst", "chat", False, 20.0, 1.0, End.WHOLE, 0.9, 0.7, "holysheep", "last_moment", 0.4)


def test_an_answer_is_told_with_what_its_headers_say_and_what_it_cost() -> None:
    found = told("burst", REQUEST, WHOLE)
    assert (found.where, found.backend, found.reason, found.request_id) == ("cloud", "holysheep", "last_moment", "abc")
    assert (found.at_s, found.ttft_s, found.queue_s, found.cost_nano_usd) == (20.0, 0.7, 0.4105, 31290)
    assert found.whole
    assert found.in_budget


def test_refused_broken_silently_broken_and_lost_are_told_apart() -> None:
    ends = {
        End.REFUSED: replace(WHOLE, status=429, error=REFUSAL),
        End.BROKEN: replace(WHOLE, error=json.dumps({"message": "gone", "code": "engine_unavailable"})),
        End.SILENT: replace(WHOLE, error="the stream ended without [DONE]"),
        End.LOST: replace(WHOLE, status=None, error="ServerDisconnectedError: "),
    }
    assert {end: told("burst", REQUEST, record).end for end, record in ends.items()} == {end: end for end in ends}
    assert told("burst", REQUEST, ends[End.REFUSED]).code == "insufficient_quota"
    assert told("burst", REQUEST, ends[End.BROKEN]).code == "engine_unavailable"


def test_a_refusal_is_answered_by_nobody_whoever_said_no() -> None:
    assert told("burst", REQUEST, replace(WHOLE, status=502, error=REFUSAL)).where == "nobody"


def test_overflow_is_open_from_the_first_that_left_for_load_to_the_last_and_single_ones_do_not_open_it() -> None:
    burst = [replace(LEFT, at_s=at_s) for at_s in (20.0, 21.0, 24.0, 24.5)]
    alone = replace(LEFT, at_s=60.0)
    stood_in = [replace(LEFT, at_s=at_s, reason="engine_not_ready") for at_s in (70.0, 70.1, 70.2)]
    assert overflow([*stood_in, alone, *burst]) == [Span(20.4, 24.9, 4)]


def test_engine_is_away_from_its_death_until_it_is_ready_or_the_day_is_over() -> None:
    changes = [Change(-30, "starting"), Change(-2, "ready"), Change(10, "down"), Change(11, "starting")]
    assert engine_away(changes, 90.0) == [Span(10, 90.0)]
    assert engine_away([*changes, Change(40, "ready")], 90.0) == [Span(10, 40)]
    assert engine_away(changes[:2], 90.0) == []


def test_meanwhile_are_those_that_were_open_for_some_of_that_time() -> None:
    before, into, after = (replace(LEFT, at_s=at_s, total_s=2.0) for at_s in (7.0, 9.0, 41.0))
    assert meanwhile([before, into, after], Span(10, 40)) == [into]


def test_pace_comes_down_to_what_a_full_engine_does_and_goes_up_while_nobody_waits() -> None:
    pace = Pace(30.0)
    for _ in range(40):
        pace.second(local_per_s=8.0, queued=5, ready=True, wanted=2.0)
    assert 7.9 < pace.per_s < 8.5
    for _ in range(10):
        pace.second(local_per_s=8.0, queued=0, ready=True, wanted=2.0)
    assert pace.per_s > 16


def test_pace_learns_nothing_of_a_calm_hour_or_a_dead_engine() -> None:
    pace = Pace(10.0)
    pace.second(local_per_s=2.0, queued=0, ready=True, wanted=0.35)
    pace.second(local_per_s=0.0, queued=9, ready=False, wanted=0.35)
    assert pace.per_s == 10.0
