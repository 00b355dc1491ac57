"""What calls and health checks teach of one provider."""

import asyncio
import logging
from collections.abc import Collection
from random import Random

import pytest

from node.dispatch.health import Checked, HealthChecks
from node.dispatch.standing import Standing, Visit, verdict_of
from node.errors import (
    SpillwayError,
    UpstreamAuth,
    UpstreamConnect,
    UpstreamConnectTimeout,
    UpstreamError,
    UpstreamPoolFull,
    UpstreamQuota,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamTruncated,
)
from node.routing.breaker import BreakerLimits, BreakerState, Verdict
from tests.dispatch.virtual_time import in_virtual_time, now_s


def standing() -> Standing:
    return Standing("cloud", lambda: 0.0, BreakerLimits(), slow_s=10.0)


def visit(of: Standing, at_s: float = 1000.0) -> Visit:
    entered = of.enter(at_s)
    assert entered is not None
    return entered


def fail(of: Standing, error: SpillwayError, times: int, at_s: float = 1000.0) -> None:
    for _ in range(times):
        call = visit(of, at_s)
        call.failed(error, at_s)
        call.left(at_s)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (UpstreamError("x"), Verdict.UPSTREAM_FAULT),
        (UpstreamTimeout("x"), Verdict.UPSTREAM_FAULT),
        (UpstreamTruncated("x"), Verdict.UPSTREAM_FAULT),
        (UpstreamConnect("x"), Verdict.LOCAL_FAULT),
        (UpstreamConnectTimeout("x"), Verdict.LOCAL_FAULT),
        (UpstreamTls("x"), Verdict.LOCAL_FAULT),
        (UpstreamPoolFull("x"), Verdict.NEUTRAL),
        (UpstreamRateLimited("x"), Verdict.NEUTRAL),
        (UpstreamRejected("x"), Verdict.NEUTRAL),
        (UpstreamAuth("x"), Verdict.NEUTRAL),
        (UpstreamQuota("x"), Verdict.NEUTRAL),
    ],
)
def test_every_failure_has_its_verdict(error: SpillwayError, verdict: Verdict) -> None:
    assert verdict_of(error) is verdict


def test_five_failures_open_the_breaker_and_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    of = standing()
    with caplog.at_level(logging.INFO, "spillway.providers"):
        fail(of, UpstreamError("x"), 5)
    assert not of.is_available(1000.5)
    assert of.away_for_s(1000.5) == pytest.approx(0.5)
    assert [record.getMessage() for record in caplog.records] == ["cloud keeps failing: left alone for 1.0 s"]


def test_tls_failures_open_it_as_ones_of_the_road(caplog: pytest.LogCaptureFixture) -> None:
    of = standing()
    with caplog.at_level(logging.INFO, "spillway.providers"):
        fail(of, UpstreamTls("x"), 5)
    assert of.breaker.opened_by is Verdict.LOCAL_FAULT
    assert "cannot be reached" in caplog.text


def test_slow_first_tokens_count_as_failures_though_they_are_answers() -> None:
    of = standing()
    for _ in range(5):
        call = visit(of)
        call.began(10.1, 1010.1)
        call.left(1020.0)
    assert of.breaker.state(1020.0) is not BreakerState.CLOSED


def test_answer_that_does_not_stream_is_never_slow() -> None:
    of = standing()
    for _ in range(5):
        call = visit(of)
        call.began(None, 1300.0)
        call.left(1300.0)
    assert of.is_available(1300.0)
    assert of.recent_ttft.value_s(1300.0) == 0.0


def test_clients_that_hang_up_are_no_failures() -> None:
    of = standing()
    for _ in range(50):
        visit(of).left(1000.5, awaited=True)
    assert of.is_available(1001.0)
    assert of.in_flight == 0


def test_clients_that_hang_up_after_waiting_too_long_were_right_to() -> None:
    of = standing()
    calls = [visit(of) for _ in range(5)]
    for call in calls:
        call.left(1010.5, awaited=True)
    assert of.breaker.state(1010.5) is BreakerState.OPEN


def test_client_that_hangs_up_as_the_trial_makes_room_for_the_next() -> None:
    of = standing()
    fail(of, UpstreamError("x"), 5)
    trial = visit(of, 1001.0)
    assert of.enter(1001.0) is None
    trial.left(1001.1)
    trial.left(1001.1)
    assert of.in_flight == 0
    assert of.enter(1001.1) is not None


def test_stream_that_stalls_in_the_middle_says_nothing_of_its_first_token() -> None:
    of = standing()
    call = visit(of)
    call.began(0.4, 1000.4)
    call.failed(UpstreamTimeout("x"), 1090.0)
    assert of.recent_ttft.value_s(1090.0) < 0.4


def test_pause_without_a_hint_grows_until_something_succeeds() -> None:
    of, at_s, pauses = standing(), 1000.0, []
    for _ in range(8):
        fail(of, UpstreamRateLimited("x"), 1, at_s)
        pauses.append(of.paused_until_s - at_s)
        assert of.enter(at_s) is None
        at_s = of.paused_until_s
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    visit(of, at_s).began(0.5, at_s)
    fail(of, UpstreamRateLimited("x"), 1, at_s)
    assert of.paused_until_s - at_s == 1


def test_overload_that_names_a_time_is_left_alone_for_it() -> None:
    of = standing()
    fail(of, UpstreamError("503", retry_after_s=3.0), 1)
    assert not of.is_available(1002.9)
    assert of.is_available(1003.0)


@pytest.mark.parametrize("error", [UpstreamAuth("no such key"), UpstreamQuota("pay"), UpstreamRateLimited("slow down")])
def test_what_is_heard_of_the_old_key_after_an_exchange_says_nothing_of_the_new_one(error: SpillwayError) -> None:
    of = standing()
    of.under("old")
    before = visit(of)
    of.under("new")
    before.failed(error, 1001.0)
    before.left(1001.0)
    assert (of.isolated_by, of.is_available(1001.0), of.in_flight) == (None, True, 0)
    visit(of, 1002.0).failed(error, 1002.0)
    assert not of.is_available(1002.0)


def test_pause_that_was_asked_of_the_old_key_ends_with_it() -> None:
    of = standing()
    of.under("old")
    of.failed(UpstreamRateLimited("slow down", retry_after_s=30.0), 1000.0)
    of.under("old")
    assert not of.is_available(1001.0)
    of.under("new")
    assert of.is_available(1001.0)


def test_operator_isolates_and_restores() -> None:
    of = standing()
    of.isolate("operator", 1000.0)
    assert (of.isolated_by, of.enter(2000.0), of.away_for_s(2000.0)) == ("operator", None, None)
    of.restore(2000.0)
    for _ in range(2):
        call = visit(of, 2000.0)
        call.began(0.1, 2000.0)
        call.left(2000.0)
    assert (of.isolated_by, of.breaker.state(2000.0)) == (None, BreakerState.CLOSED)


class Patient:
    """A provider under health checks, which answers with what it is told."""

    def __init__(self, *models: str) -> None:
        self.standing = standing()
        self.error: SpillwayError | None = None
        self.models = models
        self.timeout_s = 5.0
        self.asked_s: list[float] = []
        checked = Checked(standing=self.standing, interval_s=5.0, models=frozenset({"gpt-4.1"}))
        self.checks = HealthChecks({"cloud": checked}, self._probe, clock=now_s, random=Random(1).random)

    async def _probe(self, name: str, timeout_s: float) -> Collection[str]:
        assert (name, timeout_s) == ("cloud", self.timeout_s)
        self.asked_s.append(now_s())
        if self.error is not None:
            raise self.error
        return self.models


@in_virtual_time
async def test_health_check_of_one_that_is_well_and_idle_comes_about_once_a_minute() -> None:
    patient = Patient("gpt-4.1")
    patient.checks.start()
    await asyncio.sleep(301)
    await patient.checks.stop()
    assert 4 <= len(patient.asked_s) <= 6


@in_virtual_time
async def test_health_check_of_one_that_answers_calls_is_not_needed() -> None:
    patient = Patient("gpt-4.1")
    patient.checks.start()
    for _ in range(60):
        patient.standing.heard_s = now_s()
        await asyncio.sleep(5)
    await patient.checks.stop()
    assert patient.asked_s == []


@in_virtual_time
async def test_provider_that_is_down_is_asked_once_per_interval_and_by_no_client() -> None:
    patient = Patient("gpt-4.1")
    await patient.checks.check("cloud")
    fail(patient.standing, UpstreamError("x"), 5, now_s())
    patient.error = UpstreamConnect("x")
    patient.checks.start()
    await asyncio.sleep(6)
    for _ in range(60):
        assert patient.standing.enter(now_s()) is None
        await asyncio.sleep(1)
    assert 13 <= len(patient.asked_s) <= 17
    gaps_s = [after - before for before, after in zip(patient.asked_s[1:], patient.asked_s[2:], strict=False)]
    assert all(4 <= gap_s <= 5 for gap_s in gaps_s)
    await patient.checks.stop()


@in_virtual_time
async def test_provider_that_is_back_is_used_again_within_one_interval() -> None:
    patient = Patient("gpt-4.1")
    await patient.checks.check("cloud")
    for _ in range(6):  # it opens again and again, so that its open time is long
        fail(patient.standing, UpstreamError("x"), 5 if patient.standing.in_flight else 1, now_s())
        patient.standing.breaker.probed(Verdict.UPSTREAM_FAULT, now_s(), now_s() + 7.5)
        fail_until = patient.standing.away_for_s(now_s())
        await asyncio.sleep(0 if fail_until is None else fail_until)
    patient.error = UpstreamConnect("x")
    patient.checks.start()
    await asyncio.sleep(40)
    patient.error = None
    await asyncio.sleep(5.01)
    assert patient.standing.is_available(now_s())
    await patient.checks.stop()


@in_virtual_time
async def test_isolated_and_paused_providers_are_not_asked() -> None:
    patient = Patient("gpt-4.1")
    patient.standing.isolate("upstream_auth", now_s())
    patient.checks.start()
    await asyncio.sleep(100)
    patient.standing.restore(now_s())
    patient.standing.paused_until_s = now_s() + 100
    await asyncio.sleep(99)
    assert patient.asked_s == []
    await patient.checks.stop()


@in_virtual_time
async def test_exchanged_health_checks_go_on_with_what_they_know() -> None:
    patient = Patient("gpt-4.1")
    await patient.checks.check("cloud")
    patient.checks.start()
    checked = Checked(standing=patient.standing, interval_s=2.0, models=frozenset())
    patient.checks.replace({})
    await asyncio.sleep(100)
    assert len(patient.asked_s) == 1
    patient.checks.replace({"cloud": checked})
    patient.error, patient.timeout_s = UpstreamError("status 500"), 2.0
    await asyncio.sleep(30)
    assert not patient.standing.is_available(now_s()), "it has listed its models before: that it cannot now counts"
    await patient.checks.stop()
    assert len(asyncio.all_tasks()) == 1


@in_virtual_time
async def test_server_without_a_list_of_models_is_not_judged_by_it() -> None:
    patient = Patient()
    patient.error = UpstreamError("status 501")
    for _ in range(20):
        await patient.checks.check("cloud")
        await asyncio.sleep(5)
    assert patient.standing.is_available(now_s())


@in_virtual_time
async def test_server_that_cannot_be_reached_is_found_out_before_any_call() -> None:
    patient = Patient()
    patient.error = UpstreamConnect("x")
    patient.checks.start()
    await asyncio.sleep(20)
    assert not patient.standing.is_available(now_s())
    assert patient.standing.breaker.opened_by is Verdict.LOCAL_FAULT
    await patient.checks.stop()


@pytest.mark.parametrize("error", [UpstreamAuth("no"), UpstreamQuota("no"), UpstreamRejected("404")])
@in_virtual_time
async def test_refused_health_check_isolates_nobody(error: SpillwayError) -> None:
    patient = Patient()
    patient.error = error
    await patient.checks.check("cloud")
    assert patient.standing.is_available(now_s())
    assert patient.standing.isolated_by is None


@in_virtual_time
async def test_model_that_the_provider_does_not_list_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    patient = Patient("gpt-5")
    with caplog.at_level(logging.WARNING, "spillway.health"):
        await patient.checks.check("cloud")
        await patient.checks.check("cloud")
    assert [record.getMessage() for record in caplog.records] == [
        "cloud does not list gpt-4.1, which the catalogue names there"
    ]
