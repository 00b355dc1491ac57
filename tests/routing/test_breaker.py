"""The breaker, told as stories of calls and of the time between them."""

from random import Random

import pytest

from node.routing.breaker import TABLE, Breaker, BreakerEvent, BreakerLimits, BreakerState, Ticket, Verdict

OK, UPSTREAM, LOCAL, NOTHING = Verdict.SUCCESS, Verdict.UPSTREAM_FAULT, Verdict.LOCAL_FAULT, Verdict.NEUTRAL
FAULTS = pytest.mark.parametrize("fault", [UPSTREAM, LOCAL])
LIMITS = BreakerLimits()


class Line:
    """A breaker and its clock; without jitter unless told."""

    def __init__(self, limits: BreakerLimits = LIMITS, jitter: float = 0.0) -> None:
        self.now_s = 1000.0
        self.breaker = Breaker(limits, lambda: jitter)

    def call(self, *verdicts: Verdict, every_s: float = 0.01) -> int:
        """One call per verdict, one after the other; how many were let through."""
        entered = 0
        for verdict in verdicts:
            ticket = self.breaker.enter(self.now_s)
            self.now_s += every_s
            if ticket is not None:
                entered += 1
                self.breaker.report(ticket, verdict, self.now_s)
        return entered

    def state(self) -> BreakerState:
        return self.breaker.state(self.now_s)

    def opened(self, fault: Verdict = UPSTREAM) -> "Line":
        self.call(*[fault] * LIMITS.failures)
        assert self.state() is BreakerState.OPEN
        return self


@FAULTS
def test_opens_at_the_fifth_failure_in_a_row(fault: Verdict) -> None:
    line = Line()
    line.call(fault, fault, fault, fault)
    assert line.state() is BreakerState.CLOSED
    line.call(fault)
    assert line.state() is BreakerState.OPEN
    assert line.breaker.opened_by is fault


@FAULTS
def test_opens_after_two_seconds_of_failing_however_few_calls(fault: Verdict) -> None:
    line = Line()
    line.call(fault, fault, every_s=1.0)
    assert line.state() is BreakerState.CLOSED
    line.call(fault, every_s=1.0)
    assert line.state() is BreakerState.OPEN


def test_last_failures_of_a_crowd_that_came_at_once_do_not_last() -> None:
    line = Line()
    crowd = [line.breaker.enter(line.now_s) for _ in range(20)]
    for ticket in crowd[:16]:
        assert ticket is not None
        line.breaker.report(ticket, OK, line.now_s)
    for ticket in crowd[16:]:
        assert ticket is not None
        line.now_s += 5
        line.breaker.report(ticket, UPSTREAM, line.now_s)
    assert line.state() is BreakerState.CLOSED
    line.call(UPSTREAM)
    assert line.state() is BreakerState.OPEN


def test_one_failure_opens_nothing_however_long_ago() -> None:
    line = Line()
    line.call(UPSTREAM)
    line.now_s += 100
    assert line.state() is BreakerState.CLOSED


def test_success_in_between_begins_the_count_anew() -> None:
    line = Line()
    line.call(UPSTREAM, UPSTREAM, UPSTREAM, UPSTREAM, OK, UPSTREAM, UPSTREAM)
    assert line.state() is BreakerState.CLOSED


def test_local_and_upstream_faults_are_counted_apart() -> None:
    line = Line()
    line.call(UPSTREAM, UPSTREAM, UPSTREAM, UPSTREAM, LOCAL, LOCAL)
    assert line.state() is BreakerState.CLOSED
    line = Line()
    line.call(LOCAL, LOCAL, LOCAL, LOCAL)
    line.call(UPSTREAM)  # the road is open, after all
    line.call(LOCAL)
    assert line.state() is BreakerState.CLOSED


def test_neutral_calls_neither_open_nor_mend() -> None:
    line = Line()
    line.call(*[NOTHING] * 100)
    assert line.state() is BreakerState.CLOSED
    line.call(UPSTREAM, UPSTREAM, UPSTREAM, UPSTREAM, NOTHING, UPSTREAM)
    assert line.state() is BreakerState.OPEN


def test_flapping_opens_by_its_share_of_failures() -> None:
    line = Line()
    line.call(*[OK, UPSTREAM] * 5)
    assert line.state() is BreakerState.OPEN


def test_rare_failures_do_not_open() -> None:
    line, random = Line(), Random(5)
    for _ in range(3000):
        line.call(UPSTREAM if random.random() < 0.05 else OK)
        assert line.state() is BreakerState.CLOSED


def test_good_beginning_and_bad_end_count_as_both() -> None:
    line = Line()
    for _ in range(5):
        ticket = line.breaker.enter(line.now_s)
        if ticket is not None:
            line.breaker.report(ticket, OK, line.now_s)
            line.breaker.report(ticket, UPSTREAM, line.now_s)
    assert line.state() is BreakerState.OPEN


def test_open_lets_nothing_through_until_its_time_is_over() -> None:
    line = Line().opened()
    assert line.call(OK) == 0
    assert line.breaker.open_for_s(line.now_s) == pytest.approx(0.99)
    line.now_s += 0.99
    assert line.state() is BreakerState.HALF_OPEN


def test_half_open_admits_one_trial_at_a_time() -> None:
    line = Line().opened()
    line.now_s += 1
    trial = line.breaker.enter(line.now_s)
    assert trial is not None
    assert line.breaker.enter(line.now_s) is None
    line.breaker.report(trial, OK, line.now_s)
    assert line.state() is BreakerState.HALF_OPEN
    assert line.breaker.admits(line.now_s)


def test_half_open_closes_after_its_successes_in_a_row() -> None:
    line = Line().opened()
    line.now_s += 1
    line.call(OK, OK)
    assert line.state() is BreakerState.CLOSED
    assert (line.breaker.opened_by, line.breaker.not_closed_since_s) == (None, None)


def test_trial_that_says_nothing_leaves_room_for_the_next() -> None:
    line = Line().opened()
    line.now_s += 1
    assert line.call(NOTHING, NOTHING, OK, OK) == 4
    assert line.state() is BreakerState.CLOSED


def test_open_time_doubles_each_time_and_has_an_end() -> None:
    line = Line().opened()
    seen = []
    for _ in range(7):
        seen.append(round(line.breaker.open_for_s(line.now_s), 2))
        line.now_s += seen[-1] + 0.01
        assert line.call(UPSTREAM, every_s=0) == 1
    assert seen == [1, 2, 4, 8, 16, 30, 30]


def test_open_time_is_short_again_once_it_has_been_well_for_long() -> None:
    line = Line().opened()
    line.now_s += 1
    line.call(OK, OK)
    line.now_s += 1
    line.opened()
    assert line.breaker.open_for_s(line.now_s) == pytest.approx(2)
    line.now_s += 2
    line.call(OK, OK)
    line.now_s += 31
    line.opened()
    assert line.breaker.open_for_s(line.now_s) == pytest.approx(1)


def test_jitter_takes_up_to_half_off_the_open_time() -> None:
    assert Line(jitter=1.0).opened().breaker.open_for_s(1000.05) == pytest.approx(0.5)


def test_calls_from_before_the_opening_are_not_trials() -> None:
    line = Line()
    old = line.breaker.enter(line.now_s)
    assert old is not None
    line.opened()
    line.now_s += 1
    trial = line.breaker.enter(line.now_s)
    line.breaker.report(old, OK, line.now_s)
    line.breaker.report(old, OK, line.now_s)
    assert line.state() is BreakerState.HALF_OPEN
    line.breaker.report(old, UPSTREAM, line.now_s)
    assert line.state() is BreakerState.HALF_OPEN
    assert trial is not None
    line.breaker.report(trial, OK, line.now_s)
    line.call(OK)
    assert line.state() is BreakerState.CLOSED


def test_health_check_that_passes_again_ends_the_open_time() -> None:
    line = Line().opened()
    line.breaker.probed(UPSTREAM, line.now_s, line.now_s + 7.5)
    line.now_s += 5
    assert line.state() is BreakerState.OPEN  # no client's request is spent on what a check knows
    line.breaker.probed(OK, line.now_s, line.now_s + 7.5)
    assert line.state() is BreakerState.HALF_OPEN


def test_health_check_that_never_failed_ends_nothing() -> None:
    line = Line().opened()
    line.breaker.probed(OK, line.now_s, line.now_s + 7.5)
    assert line.state() is BreakerState.OPEN


def test_health_check_that_gets_there_ends_a_local_opening() -> None:
    line = Line().opened(LOCAL)
    line.breaker.probed(OK, line.now_s, line.now_s + 7.5)
    assert line.state() is BreakerState.HALF_OPEN


def test_failing_health_checks_open_it_without_any_call() -> None:
    line = Line()
    for _ in range(2):
        line.breaker.probed(LOCAL, line.now_s, line.now_s + 7.5)
        line.now_s += 5
    line.breaker.probed(LOCAL, line.now_s, line.now_s + 7.5)
    assert line.state() is BreakerState.OPEN


def test_isolation_lasts_until_it_is_ended_and_ends_with_care() -> None:
    line = Line()
    line.breaker.isolate(line.now_s)
    line.now_s += 1e6
    line.breaker.probed(OK, line.now_s, line.now_s)
    assert line.call(OK) == 0
    assert line.state() is BreakerState.ISOLATED
    line.breaker.restore(line.now_s)
    assert line.state() is BreakerState.HALF_OPEN
    line.call(OK, OK)
    assert line.state() is BreakerState.CLOSED


def test_every_state_can_be_left_and_be_isolated() -> None:
    for state in BreakerState:
        assert any(before is state for before, _ in TABLE)
        if state is not BreakerState.ISOLATED:
            assert TABLE[state, BreakerEvent.ISOLATE] is BreakerState.ISOLATED


@pytest.mark.parametrize("seed", range(20))
def test_no_trial_is_ever_lost(seed: int) -> None:
    """Whatever happens in whatever order: a breaker whose calls succeed lets calls through in the end."""
    random = Random(seed)
    line = Line(jitter=random.random())
    tickets: list[Ticket] = []
    for _ in range(400):
        line.now_s += random.random()
        match random.randrange(4):
            case 0 | 1:
                ticket = line.breaker.enter(line.now_s)
                tickets += [] if ticket is None else [ticket]
            case 2 if tickets:
                line.breaker.report(
                    tickets.pop(random.randrange(len(tickets))), random.choice(list(Verdict)), line.now_s
                )
            case _:
                line.breaker.probed(random.choice(list(Verdict)), line.now_s, line.now_s + 7.5)
    for ticket in tickets:
        line.breaker.report(ticket, NOTHING, line.now_s)
    line.now_s += 60
    line.call(OK, OK)
    assert line.state() is BreakerState.CLOSED
