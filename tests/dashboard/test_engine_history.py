"""An engine's states as the dashboard tells them."""

from __future__ import annotations

import random

from node.dashboard.engine_history import EngineHistory
from node.local.supervision import Event, Rules, Supervision


def test_each_change_of_state_is_told_once_with_its_time_and_a_failure_with_its_cause() -> None:
    now_s = 100.0
    history = EngineHistory(lambda: now_s)
    life = Supervision.begin(0.0)
    history.note(life)
    history.note(life)
    now_s = 130.0
    life = life.after(Event.STARTED, 30.0)
    history.note(life)
    now_s = 200.0
    life = life.failed(Event.DIED, 100.0, Rules(), random.Random(1), why="its process has ended")
    history.note(life)
    now_s = 201.0
    history.note(life.after(Event.REBUILD, 101.0))
    told = [(each.at_s, each.state, each.why) for each in history.changes()]
    assert told == [
        (100.0, "starting", None),
        (130.0, "ready", None),
        (200.0, "down", "its process has ended"),
        (201.0, "starting", None),
    ]


def test_engine_that_is_given_up_says_so() -> None:
    history = EngineHistory(lambda: 1.0)
    life = Supervision.begin(0.0)
    why = "vLLM does not know this argument"
    history.note(life.failed(Event.DIED, 1.0, Rules(), random.Random(1), why=why, for_good=True))
    assert [(each.state, each.why) for each in history.changes()] == [("given_up", why)]


def test_only_the_last_changes_are_kept() -> None:
    history = EngineHistory(lambda: 1.0, kept=4)
    life = Supervision.begin(0.0).after(Event.STARTED, 1.0)
    for _ in range(10):
        life = life.after(Event.STALLED, 2.0)
        history.note(life)
        life = life.after(Event.MOVED, 3.0)
        history.note(life)
    assert len(history.changes()) == 4
