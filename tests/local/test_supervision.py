"""The life of an engine as a table, and the arithmetic of patience, on made-up times."""

import random

import pytest

from node.local.supervision import (
    TRANSITIONS,
    Event,
    Progress,
    Rules,
    Supervision,
    longest_step_s,
    patience,
)
from node.routing.profile import StepModel
from node.routing.values import EngineState

RULES = Rules()
RNG = random.Random(1)
DIED = "it has died"


def ready(now_s: float = 20.0) -> Supervision:
    return Supervision.begin(0.0).after(Event.STARTED, now_s)


def failed(life: Supervision, now_s: float, event: Event = Event.DIED, rules: Rules = RULES) -> Supervision:
    return life.failed(event, now_s, rules, RNG, why=DIED)


def rebuilt(life: Supervision, ready_at_s: float) -> Supervision:
    assert life.rebuild_at_s is not None
    return life.after(Event.REBUILD, life.rebuild_at_s).after(Event.STARTED, ready_at_s)


@pytest.mark.parametrize("state", [state for state in EngineState if state is not EngineState.ASLEEP])
@pytest.mark.parametrize("event", list(Event))
def test_only_what_the_table_has_can_happen(state: EngineState, event: Event) -> None:
    life = Supervision(state=state, since_s=0.0)
    if event in TRANSITIONS[state]:
        after = life.after(event, 5.0)
        assert (after.state, after.since_s) == (TRANSITIONS[state][event], 5.0)
    else:
        with pytest.raises(KeyError):
            life.after(event, 5.0)


def test_a_life_from_start_over_suspicion_and_death_to_the_next_engine() -> None:
    life = ready()
    assert life.start_took_s == 20.0
    life = life.after(Event.STALLED, 30.0).after(Event.MOVED, 31.0)
    assert (life.state, life.deaths) == (EngineState.READY, 0)
    life = failed(life.after(Event.STALLED, 40.0), 90.0, Event.HUNG)
    assert (life.state, life.deaths, life.hangs, life.why) == (EngineState.DOWN, 1, 1, DIED)
    assert life.rebuild_at_s is not None
    assert 90.0 <= life.rebuild_at_s <= 91.0
    life = rebuilt(life, 110.0)
    assert (life.state, life.starts, life.rebuild_at_s) == (EngineState.READY, 2, None)


def test_row_62_crash_loop_backs_off_further_and_further_and_is_given_up() -> None:
    life, now_s, pauses_s = Supervision.begin(0.0), 0.0, []
    for _ in range(RULES.attempts):
        life = failed(life, now_s)
        assert life.rebuild_at_s is not None
        pauses_s.append(life.rebuild_at_s - now_s)
        now_s = life.rebuild_at_s
        life = life.after(Event.REBUILD, now_s)
    life = failed(life, now_s)
    assert (life.given_up, life.rebuild_at_s, life.state) == (True, None, EngineState.DOWN)
    assert life.starts == RULES.attempts + 1
    assert all(0 <= pause_s <= 2**number for number, pause_s in enumerate(pauses_s))
    assert life.back_in_s(now_s) is None
    assert life.shown_state(now_s, patience_s=1e9) is EngineState.DOWN


def test_pauses_are_random_up_to_a_limit() -> None:
    rules = Rules(attempts=1000)
    life = Supervision.begin(0.0)
    pauses_s = []
    for _ in range(200):
        life = failed(life, 0.0, rules=rules)
        assert life.rebuild_at_s is not None
        pauses_s.append(life.rebuild_at_s)
        life = life.after(Event.REBUILD, 0.0)
    assert max(pauses_s) <= rules.longest_pause_s
    assert min(pauses_s[10:]) < rules.longest_pause_s / 10, "full jitter: from nothing on"


def test_failures_far_apart_are_not_held_against_it() -> None:
    life, now_s = ready(), 20.0
    for _ in range(50):
        now_s += RULES.window_s + 1.0
        life = rebuilt(failed(life, now_s), now_s + 20.0)
    assert not life.given_up
    assert life.deaths == 50


def test_what_would_fail_the_same_way_again_is_not_tried_again() -> None:
    life = Supervision.begin(0.0).failed(Event.DIED, 1.0, RULES, RNG, why="no such argument", for_good=True)
    assert (life.given_up, life.rebuild_at_s) == (True, None)


def test_who_cannot_leave_waits_for_an_engine_that_is_expected_in_time_and_for_no_other() -> None:
    life = failed(ready(20.0), 100.0)
    back_in_s = life.back_in_s(100.0)
    assert back_in_s is not None
    assert 20.0 <= back_in_s <= 21.0
    assert life.shown_state(100.0, patience_s=60.0) is EngineState.STARTING
    assert life.shown_state(100.0, patience_s=5.0) is EngineState.DOWN
    assert life.rebuild_at_s is not None
    again = life.after(Event.REBUILD, life.rebuild_at_s)
    assert again.back_in_s(life.rebuild_at_s + 5.0) == pytest.approx(15.0)
    assert again.shown_state(life.rebuild_at_s + 5.0, patience_s=10.0) is EngineState.DOWN
    assert again.shown_state(life.rebuild_at_s + 11.0, patience_s=10.0) is EngineState.STARTING
    assert Supervision.begin(0.0).shown_state(5.0, patience_s=10.0) is EngineState.STARTING, "nobody knows"
    assert again.back_in_s(life.rebuild_at_s + 50.0) == 0.0, "any moment now"


def test_an_engine_built_anew_is_given_its_slots_one_after_the_other() -> None:
    assert ready(20.0).slots(64, 20.0, RULES) == 64, "the first one has nothing to be afraid of"
    life = rebuilt(failed(ready(20.0), 100.0), 130.0)
    slots = [life.slots(64, 130.0 + second, RULES) for second in range(7)]
    assert slots[0] == 1
    assert slots == sorted(slots)
    assert slots[5:] == [64, 64]


def test_fresh_engines_and_slow_steps_are_given_more_time() -> None:
    later, fresh = patience(RULES, 1000.0, 0.05), patience(RULES, 10.0, 0.05)
    assert (later.suspect_s, later.hung_s) == (10.0, 60.0)
    assert (fresh.suspect_s, fresh.hung_s) == (10.0, 180.0)
    slow = patience(
        RULES, 1000.0, longest_step_s(StepModel(base_s=2.0, per_decode_s=0, per_prefill_token_s=0.001), 8, 8000)
    )
    assert (slow.suspect_s, slow.hung_s) == (50.0, 200.0)
    assert longest_step_s(None, 8, 8000) is None


LOOK_S = 1.0
ALLOWED = patience(RULES, 1000.0, 0.05)


def watched(steps_at: list[tuple[float, int, bool]]) -> list[Event]:
    """What a watch says to an engine that, at each time, had made so many steps and had work or not."""
    life = ready(0.0)
    said: list[Event] = []
    progress = Progress(0, 0.0)
    for now_s, steps, busy in steps_at:
        progress = progress.look(steps, now_s, busy=busy, longest_look_s=2 * LOOK_S)
        event = progress.verdict(life.state, ALLOWED)
        if event is Event.HUNG:
            said.append(event)
            break
        if event is not None:
            said.append(event)
            life = life.after(event, now_s)
    return said


def test_row_61_an_engine_that_stands_still_is_suspect_and_then_hung() -> None:
    looks = [(float(second), 7, True) for second in range(1, 75)]
    assert watched(looks) == [Event.STALLED, Event.HUNG]
    assert watched(looks[:62]) == [Event.STALLED, Event.HUNG], "a look after the limit at most"
    assert watched(looks[:12]) == [Event.STALLED]


def test_an_hour_of_long_saturated_steps_is_no_hang() -> None:
    step_s = 9.0
    looks = [(float(second), int(second / step_s), True) for second in range(1, 3600)]
    assert watched(looks) == []


def test_a_kernel_that_compiles_for_half_a_minute_brings_suspicion_and_no_death() -> None:
    looks = [(float(second), 1 if second < 40 else second, True) for second in range(1, 100)]
    assert watched(looks) == [Event.STALLED, Event.MOVED]


def test_an_idle_engine_is_not_expected_to_make_steps() -> None:
    assert watched([(float(second), 3, False) for second in range(1, 100_000, 100)]) == []


def test_callers_who_leave_do_not_make_a_hung_engine_look_well() -> None:
    looks = [(float(second), 3, second % 8 != 0) for second in range(1, 200)]
    assert watched(looks) == [Event.STALLED, Event.HUNG]


def test_time_in_which_this_process_stood_still_itself_is_not_held_against_the_engine() -> None:
    assert watched([(1.0, 1, True), (2.0, 1, True), (900.0, 1, True), (901.0, 5, True)]) == []
