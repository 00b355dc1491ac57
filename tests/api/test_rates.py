"""Requests and tokens per minute: what is refused, what the headers say, and what comes back at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.api.rates import RateLimits
from node.caller import Caller
from node.dispatch.outcome import Ending, Outcome
from node.errors import MoreThanAMinute, RateLimited, render
from node.money import Usage
from node.routing.values import Features, Residency
from tests.outcomes import SERVED_HERE

REQUEST = Features(
    request_id="r",
    model="demo",
    residency=Residency.ANY,
    prompt_bytes=400,
    prompt_tokens_estimate=100,
    prompt_tokens_bound=400,
    max_output_tokens=200,
    choices=2,
    needs=frozenset(),
    prefer_local=False,
    ttft_budget_s=2.0,
    latency_budget_s=None,
    cost_budget_nano_usd=None,
    arrived_s=0.0,
    give_up_s=60.0,
    tenant="app",
)
OUTCOME = replace(SERVED_HERE, prompt_bytes=400, usage=Usage(90, 110), most_tokens=REQUEST.most_tokens)
CALLER = Caller("app", requests_per_minute=3, tokens_per_minute=1000)


class Limits:
    def __init__(self) -> None:
        self.now_s = 1e6
        self.limits = RateLimits(lambda: self.now_s)

    def headers(self, caller: Caller = CALLER) -> dict[str, str]:
        return {
            name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in self.limits.headers(caller)
        }


@pytest.fixture
def limits() -> Limits:
    return Limits()


def test_headers_say_what_there_is_and_what_is_left(limits: Limits) -> None:
    assert limits.headers() == {
        "limit-requests": "3",
        "remaining-requests": "3",
        "reset-requests": "0ms",
        "limit-tokens": "1000",
        "remaining-tokens": "1000",
        "reset-tokens": "0ms",
    }
    limits.limits.take(CALLER, REQUEST)
    assert limits.headers() == {
        "limit-requests": "3",
        "remaining-requests": "2",
        "reset-requests": "20s",
        "limit-tokens": "1000",
        "remaining-tokens": "500",
        "reset-tokens": "30s",
    }
    assert limits.headers(Caller("other", requests_per_minute=5)) == {
        "limit-requests": "5",
        "remaining-requests": "5",
        "reset-requests": "0ms",
    }


def test_requests_beyond_the_limit_are_told_when_to_come_back(limits: Limits) -> None:
    small = replace(REQUEST, max_output_tokens=1, choices=1, prompt_tokens_estimate=1)
    for _ in range(3):
        limits.limits.take(CALLER, small)
    with pytest.raises(RateLimited, match=r"3 requests per minute.*try again in 20s") as refused:
        limits.limits.take(CALLER, small)
    status, headers, _ = render(refused.value)
    assert (status, headers["retry-after"], refused.value.code) == (429, "20", "rate_limit_exceeded")
    assert "x-should-retry" not in headers
    limits.now_s += 20.0
    limits.limits.take(CALLER, small)


def test_tokens_beyond_the_limit_are_refused_and_the_refused_count_for_nothing(limits: Limits) -> None:
    limits.limits.take(CALLER, REQUEST)
    limits.limits.take(CALLER, REQUEST)
    with pytest.raises(RateLimited, match="1000 tokens per minute but 0, and the request may come to 500"):
        limits.limits.take(CALLER, REQUEST)
    assert limits.headers()["remaining-requests"] == "1"


def test_request_that_never_fits_is_told_so(limits: Limits) -> None:
    with pytest.raises(MoreThanAMinute, match=r"1700 tokens.*1000 per minute.*max_tokens") as refused:
        limits.limits.take(CALLER, replace(REQUEST, max_output_tokens=800))
    assert render(refused.value)[1]["x-should-retry"] == "false"


def test_tokens_that_were_not_used_come_back_at_the_end(limits: Limits) -> None:
    limits.limits.take(CALLER, REQUEST)
    limits.limits.settle(OUTCOME)
    assert limits.headers()["remaining-tokens"] == "800"
    assert limits.headers()["remaining-requests"] == "2"


@pytest.mark.parametrize(
    "outcome",
    [
        replace(OUTCOME, backend="cache"),
        replace(OUTCOME, ending=Ending.REFUSED, backend=None, usage=None),
        replace(OUTCOME, ending=Ending.FAILED, usage=None),
    ],
)
def test_what_nobody_computed_uses_no_tokens(limits: Limits, outcome: Outcome) -> None:
    limits.limits.take(CALLER, REQUEST)
    limits.limits.settle(outcome)
    assert limits.headers()["remaining-tokens"] == "1000"


def test_more_tokens_than_expected_are_owed(limits: Limits) -> None:
    limits.limits.take(CALLER, REQUEST)
    limits.limits.settle(replace(OUTCOME, usage=Usage(1500, 0)))
    assert limits.headers()["remaining-tokens"] == "0"
    assert limits.headers()["reset-tokens"] == "1m30s"


def test_changed_limit_is_there_at_once_and_an_unchanged_one_goes_on(limits: Limits) -> None:
    limits.limits.take(CALLER, REQUEST)
    assert limits.headers(replace(CALLER, priority=4))["remaining-tokens"] == "500"
    assert limits.headers(replace(CALLER, tokens_per_minute=600))["remaining-tokens"] == "600"


def test_outcome_of_a_caller_without_limits_is_nothing_to_count(limits: Limits) -> None:
    limits.limits.settle(replace(OUTCOME, tenant="free"))
    assert limits.headers(Caller("free")) == {}
