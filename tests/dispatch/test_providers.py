"""What a provider's refusals teach the node: pause when asked to, stay away when the key is no good."""

import logging

import pytest

from node.errors import SpillwayError, UpstreamAuth, UpstreamQuota, UpstreamRateLimited
from node.routing.breaker import Verdict
from tests.dispatch.doubles import House, ScriptedBackend, named, read
from tests.dispatch.virtual_time import in_virtual_time, now_s


def refusing(error: SpillwayError) -> ScriptedBackend:
    return ScriptedBackend("cloud", (error,))


@in_virtual_time
async def test_provider_that_asks_for_a_pause_gets_it() -> None:
    home = House(None, [refusing(UpstreamRateLimited("x", retry_after_s=7)), ScriptedBackend("other")])
    await read(await home.answer())
    state = home.providers.states["cloud"].standing
    assert not state.is_available(now_s() + 6.9)
    assert state.is_available(now_s() + 7)


@in_virtual_time
async def test_provider_that_asks_for_a_day_gets_a_minute() -> None:
    home = House(None, [refusing(UpstreamRateLimited("x", retry_after_s=86_400))])
    with pytest.raises(UpstreamRateLimited):
        await home.answer()
    assert home.providers.states["cloud"].standing.is_available(now_s() + 60)


@in_virtual_time
async def test_provider_that_refuses_our_key_is_left_alone() -> None:
    home = House(None, [refusing(UpstreamAuth("x")), ScriptedBackend("other")])
    await read(await home.answer())
    await read(await home.answer(named("again")))
    assert home.clouds["cloud"].serves.opened == 1
    assert home.providers.states["cloud"].standing.isolated_by == "upstream_auth"


@pytest.mark.parametrize("error", [UpstreamAuth("cloud refuses our key"), UpstreamQuota("cloud wants money")])
@in_virtual_time
async def test_isolation_is_one_warning_and_stands_in_the_statistics(
    error: SpillwayError, caplog: pytest.LogCaptureFixture
) -> None:
    home = House(None, [refusing(error), ScriptedBackend("other")])
    with caplog.at_level(logging.WARNING, "spillway.providers"):
        await read(await home.answer())
    home.providers.states["cloud"].standing.failed(error, now_s())
    (record,) = caplog.records
    assert (record.levelname, "cloud" in record.getMessage(), str(error.code) in record.getMessage()) == (
        "WARNING", True, True,
    )  # fmt: skip
    document = home.providers.document(now_s())
    assert {name: (each["available"], each["isolated_by"], each["breaker"]) for name, each in document.items()} == {
        "cloud": (False, error.code, "isolated"),
        "other": (True, None, "closed"),
    }


@in_virtual_time
async def test_pause_stands_in_the_statistics() -> None:
    home = House(None, [refusing(UpstreamRateLimited("x", retry_after_s=7)), ScriptedBackend("other")])
    await read(await home.answer())
    paused = home.providers.document(now_s() + 2)["cloud"]
    assert (paused["available"], paused["paused_s"], paused["isolated_by"]) == (False, 5.0, None)
    assert (paused["tried_in_s"], paused["not_closed_for_s"]) == (5.0, None)
    later = home.providers.document(now_s() + 8)["cloud"]
    assert (later["available"], later["tried_in_s"]) == (True, 0.0)


@in_virtual_time
async def test_statistics_say_how_long_a_provider_is_away_and_when_it_is_tried_again() -> None:
    home = House(None, [ScriptedBackend("cloud"), ScriptedBackend("other")])
    standing = home.providers.states["cloud"].standing
    opened_s = now_s()
    while (ticket := standing.breaker.enter(opened_s)) is not None:
        standing.report(ticket, Verdict.UPSTREAM_FAULT, opened_s)
    left_s = standing.breaker.open_for_s(opened_s)
    away = home.providers.document(opened_s + 0.1)["cloud"]
    assert (away["breaker"], away["not_closed_for_s"]) == ("open", 0.1)
    assert away["tried_in_s"] == pytest.approx(left_s - 0.1, abs=0.1)
    tried = home.providers.document(opened_s + left_s + 60)["cloud"]
    assert (tried["breaker"], tried["tried_in_s"]) == ("half_open", 0.0)
    assert tried["not_closed_for_s"] == pytest.approx(left_s + 60, abs=0.1)
    home.providers.isolate("cloud", opened_s + 61)
    assert home.providers.document(opened_s + 62)["cloud"]["tried_in_s"] is None
