"""The states of engines and providers as the dashboard tells them."""

from __future__ import annotations

import random

from node.dashboard.history import History, engine_state, provider_state
from node.dispatch.standing import OPERATOR, Standing
from node.local.supervision import Event, Rules, Supervision
from node.routing.breaker import BreakerLimits, Verdict


def test_each_change_of_state_is_told_once_with_its_time_and_a_failure_with_its_cause() -> None:
    now_s = 100.0
    history = History(lambda: now_s)
    life = Supervision.begin(0.0)
    history.note(*engine_state(life))
    history.note(*engine_state(life))
    now_s = 130.0
    life = life.after(Event.STARTED, 30.0)
    history.note(*engine_state(life))
    now_s = 200.0
    life = life.failed(Event.DIED, 100.0, Rules(), random.Random(1), why="its process has ended")
    history.note(*engine_state(life))
    now_s = 201.0
    history.note(*engine_state(life.after(Event.REBUILD, 101.0)))
    told = [(each.at_s, each.state, each.why) for each in history.changes()]
    assert told == [
        (100.0, "starting", None),
        (130.0, "ready", None),
        (200.0, "down", "its process has ended"),
        (201.0, "starting", None),
    ]


def test_engine_that_is_given_up_says_so() -> None:
    history = History(lambda: 1.0)
    life = Supervision.begin(0.0)
    why = "vLLM does not know this argument"
    history.note(*engine_state(life.failed(Event.DIED, 1.0, Rules(), random.Random(1), why=why, for_good=True)))
    assert [(each.state, each.why) for each in history.changes()] == [("given_up", why)]


def test_only_the_last_changes_are_kept() -> None:
    history = History(lambda: 1.0, kept=4)
    life = Supervision.begin(0.0).after(Event.STARTED, 1.0)
    for _ in range(10):
        life = life.after(Event.STALLED, 2.0)
        history.note(*engine_state(life))
        life = life.after(Event.MOVED, 3.0)
        history.note(*engine_state(life))
    assert len(history.changes()) == 4


def test_provider_that_is_tried_now_and_then_is_away_for_all_that_time() -> None:
    now_s = 100.0
    history = History(lambda: now_s)
    standing = Standing("cloud", lambda: 0.0, BreakerLimits(failures=1, open_s=1.0, successes=1), slow_s=10.0)

    def look() -> None:
        history.note(*provider_state(standing, now_s))

    def call(verdict: Verdict) -> None:
        ticket = standing.breaker.enter(now_s)
        assert ticket is not None
        standing.report(ticket, verdict, now_s)
        look()

    look()
    now_s = 110.0
    call(Verdict.UPSTREAM_FAULT)
    for later_s in (112.0, 116.0, 124.0):
        now_s = later_s
        look()  # half open by now
        call(Verdict.UPSTREAM_FAULT)
    assert standing.breaker.not_closed_since_s == 110.0
    now_s = 140.0
    call(Verdict.SUCCESS)
    now_s = 150.0
    standing.isolate(OPERATOR, now_s)
    look()
    assert [(each.at_s, each.state, each.why) for each in history.changes()] == [
        (100.0, "closed", None),
        (110.0, "open", "upstream_fault"),
        (140.0, "closed", None),
        (150.0, "isolated", "operator"),
    ]
