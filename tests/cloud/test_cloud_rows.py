"""What a client of the node gets whatever a provider does, over real sockets; a row is one of the list of faults."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.emulator import Emulator, Switch
from node.emulator.replies import STREAM_ONLY
from node.routing.breaker import BreakerState, Verdict
from tests.cloud.cloud_node import MODEL, CloudNode, cloud_node
from tests.cloud.cloud_upstream import make_certificate
from tests.emulator.emulator_client import KEY, fast

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[CloudNode]:
    """A node with one provider."""
    async with cloud_node(tmp_path, "one") as made:
        yield made


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[CloudNode]:
    """A node with two, of which the first is taken while it can be."""
    async with cloud_node(tmp_path, "one", "two") as made:
        yield made


LIMITS = [
    (Switch.RATE_LIMIT, 1.0),
    (Switch.RATE_LIMIT_SECONDS, 7.0),
    (Switch.RATE_LIMIT_DATE, 7.0),
    (Switch.RATE_LIMIT_ZERO, 1.0),
    (Switch.RATE_LIMIT_NEGATIVE, 1.0),
    (Switch.RATE_LIMIT_HUGE, 60.0),
    (Switch.RATE_LIMIT_NONSENSE, 1.0),
    (Switch.RATE_LIMIT_IN_BODY, 1.2),
]


@pytest.mark.parametrize(("switch", "pause_s"), LIMITS)
async def test_row_42_rate_limit_pauses_for_a_bounded_time(one: CloudNode, switch: Switch, pause_s: float) -> None:
    one.arm(switch)
    answer = await one.ask()
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    left_s = one.standing().paused_until_s - time.monotonic()
    assert pause_s - 1.5 < left_s <= pause_s
    assert (one.outcome.cost_nano_usd, one.outcome.attempts) == (0, 1)
    again = await one.ask()
    assert again.status == 503
    assert int(again.headers["retry-after"]) <= math.ceil(pause_s)
    assert one.asked() == 1
    await one.assert_clean()


async def test_row_42_rate_limited_request_goes_elsewhere_at_once(two: CloudNode) -> None:
    two.arm(Switch.RATE_LIMIT_SECONDS)
    assert [(await two.ask()).headers["x-spillway-backend"] for _ in range(3)] == ["two", "two", "two"]
    assert two.asked("one") == 1
    await two.assert_clean()


@BOTH
@pytest.mark.parametrize("switch", [Switch.PAYMENT_REQUIRED, Switch.INSUFFICIENT_QUOTA])
async def test_row_43_provider_that_wants_money_is_left_alone(
    one: CloudNode, switch: Switch, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    one.arm(switch)
    answer = await one.ask(stream=stream)
    assert (answer.status, answer.error["code"]) == (503, "upstream_quota")
    assert (await one.ask(stream=stream)).status == 503
    assert (one.asked(), one.standing().isolated_by) == (1, "upstream_quota")
    metrics = one.node.metrics.text()
    assert b'spillway_provider_available{provider="one"} 0.0' in metrics
    assert b'spillway_provider_breaker_state{provider="one",state="isolated"} 1.0' in metrics
    assert b'spillway_provider_calls_total{provider="one"} 1.0' in metrics
    assert b'spillway_provider_errors_total{code="upstream_quota",provider="one"} 1.0' in metrics
    assert "left alone" in caplog.text
    await one.assert_clean()


@BOTH
@pytest.mark.parametrize("switch", [Switch.UNAUTHORIZED, Switch.FORBIDDEN])
async def test_row_44_provider_that_refuses_the_key_is_left_alone_and_the_key_not_shown(
    one: CloudNode, switch: Switch, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    one.arm(switch)
    answer = await one.ask(stream=stream)
    assert (answer.status, answer.error["code"]) == (502, "upstream_auth")
    assert KEY.encode() not in answer.body
    assert KEY not in caplog.text
    assert one.standing().breaker.state(time.monotonic()) is BreakerState.ISOLATED
    await one.assert_clean()


@BOTH
async def test_row_45_rejected_request_is_not_tried_again(two: CloudNode, stream: bool) -> None:
    two.arm(Switch.BAD_REQUEST)
    answer = await two.ask(stream=stream)
    assert (answer.status, answer.error["code"], answer.headers["x-should-retry"]) == (
        502, "upstream_rejected", "false",
    )  # fmt: skip
    assert (two.asked("one"), two.asked("two")) == (1, 0)
    assert two.standing().is_available(time.monotonic())
    await two.assert_clean()


HTML = [Switch.ERROR_500, Switch.ERROR_502, Switch.ERROR_503, Switch.ERROR_504]


@BOTH
@pytest.mark.parametrize("switch", HTML)
async def test_row_46_html_error_is_tried_once_more_and_then_a_502(
    one: CloudNode, switch: Switch, stream: bool
) -> None:
    one.arm(switch)
    answer = await one.ask(stream=stream)
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert b"html" not in answer.body
    assert (one.asked(), one.outcome.cost_nano_usd) == (2, 0)
    await one.assert_clean()


@pytest.mark.parametrize("switch", HTML)
async def test_row_46_html_error_once_is_not_noticed(one: CloudNode, switch: Switch) -> None:
    one.arm(switch, count=1)
    assert (await one.ask()).status == 200
    await one.assert_clean()


SILENT = [Switch.SILENCE, Switch.HEADERS_THEN_HANG, Switch.COMMENTS_ONLY]


@pytest.mark.parametrize("switch", SILENT)
async def test_rows_47_and_48_silent_provider_is_left_at_the_budget(two: CloudNode, switch: Switch) -> None:
    two.arm(switch)
    began_s = time.monotonic()
    answer = await two.ask()
    assert (answer.status, answer.headers["x-spillway-backend"]) == (200, "two")
    assert 0.24 < time.monotonic() - began_s < 2.0
    (record,) = two.clouds["one"].bill.records
    assert record["state"] == "client_closed"
    assert two.outcome.attempts == 2
    await two.assert_clean()


@pytest.mark.parametrize("switch", SILENT)
async def test_rows_47_and_48_silent_provider_alone_is_a_504_within_its_clock(tmp_path: Path, switch: Switch) -> None:
    async with cloud_node(tmp_path, "one", clocks={"first_content_s": 0.8}) as node:
        node.arm(switch)
        began_s = time.monotonic()
        answer = await node.ask()
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        assert 0.7 < time.monotonic() - began_s < 2.0
        assert (node.asked(), node.outcome.attempts) == (1, 1)
        assert node.outcome.cost_nano_usd > 0  # what was cut off may be on the bill
        await node.assert_clean()


async def test_row_49_error_in_the_first_event_is_a_failure_and_another_provider_answers(two: CloudNode) -> None:
    two.arm(Switch.ERROR_IN_FIRST_EVENT)
    answer = await two.ask()
    assert (answer.status, answer.headers["x-spillway-backend"]) == (200, "two")
    assert "error" not in answer.events[0]
    await two.assert_clean()


BREAKS = {
    Switch.RESET_MID_STREAM: "upstream_truncated",
    Switch.CLOSE_MID_STREAM: "upstream_truncated",
    Switch.EOF_WITHOUT_DONE: "upstream_truncated",
    Switch.EOF_MID_JSON: "upstream_truncated",
    Switch.EOF_MID_UTF8: "upstream_truncated",
    Switch.INVALID_JSON: "upstream_truncated",
    Switch.LONG_LINE: "upstream_truncated",
    Switch.MISSING_CHOICES: "upstream_truncated",
    Switch.ERROR_MID_STREAM: "upstream_error",
    Switch.STALL_MID_STREAM: "upstream_timeout",
}


@pytest.mark.parametrize(("switch", "code"), BREAKS.items())
async def test_row_50_stream_that_breaks_ends_in_an_error_event_and_nothing_is_spliced_in(
    two: CloudNode, switch: Switch, code: str
) -> None:
    two.arm(switch)
    answer = await two.ask()
    if answer.headers["x-spillway-backend"] == "two":  # it broke before any content: then another one may answer
        assert two.outcome.attempts == 2
    else:
        assert answer.status == 200
        assert answer.error["code"] == code
        assert answer.text
        assert two.asked("two") == 0
        usage = two.outcome.usage
        assert usage is not None
        assert usage.estimated
        assert usage.completion_tokens > 0
        assert two.outcome.cost_nano_usd > 0
    await two.assert_clean()


LEGAL = [
    Switch.CRLF,
    Switch.CR,
    Switch.BOM,
    Switch.SPLIT_UTF8,
    Switch.WRONG_OBJECT,
    Switch.EVENTS_AFTER_DONE,
    Switch.WRONG_CONTENT_TYPE,
    Switch.RESPONSES_SSE,
]


@pytest.mark.parametrize("switch", [*LEGAL, Switch.JSON_FOR_STREAM])
async def test_row_51_odd_but_readable_streams_are_read(one: CloudNode, switch: Switch) -> None:
    one.arm(switch)
    answer = await one.ask()
    assert answer.status == 200
    assert answer.text.startswith("Emulated answer")
    assert {event["object"] for event in answer.events} == {"chat.completion.chunk"}
    assert one.outcome.cost_nano_usd == one.clouds["one"].billed_nano_usd
    await one.assert_clean()


@pytest.mark.parametrize(
    "switch", [Switch.WRONG_OBJECT, Switch.WRONG_CONTENT_TYPE, Switch.SSE_FOR_JSON, Switch.RESPONSES_SSE]
)
async def test_row_51_odd_but_readable_documents_are_read(one: CloudNode, switch: Switch) -> None:
    one.arm(switch)
    answer = await one.ask(stream=False)
    assert answer.status == 200
    assert answer.text.startswith("Emulated answer")
    await one.assert_clean()


async def test_row_51_stream_without_an_end_is_cut(one: CloudNode) -> None:
    one.arm(Switch.ENDLESS)
    answer = await one.ask(max_tokens=8)
    assert answer.error["code"] == "upstream_truncated"
    await one.assert_clean()


USAGES = [
    Switch.USAGE_MISSING,
    Switch.USAGE_ZERO,
    Switch.USAGE_NEGATIVE,
    Switch.USAGE_TENFOLD,
    Switch.USAGE_STRING,
    Switch.USAGE_EARLY,
    Switch.USAGE_ON_CONTENT,
]


@pytest.mark.parametrize(
    ("switch", "stream"),
    [*((switch, True) for switch in USAGES), *((switch, False) for switch in USAGES if switch not in STREAM_ONLY)],
)
async def test_row_52_charge_is_never_below_what_was_delivered(one: CloudNode, switch: Switch, stream: bool) -> None:
    one.arm(switch)
    answer = await one.ask(stream=stream)
    assert answer.status == 200
    (record,) = one.clouds["one"].bill.records
    usage = one.outcome.usage
    assert usage is not None
    if stream:
        assert usage.completion_tokens >= record["completion_tokens"]
    assert usage.completion_tokens <= 61  # a blank that the emulator sends by itself looks like a token
    assert one.outcome.cost_nano_usd > 0
    lies = {Switch.USAGE_ZERO, Switch.USAGE_NEGATIVE, Switch.USAGE_TENFOLD, Switch.USAGE_STRING}
    assert usage.suspect or switch not in lies
    await one.assert_clean()


@pytest.mark.parametrize("switch", [Switch.WRONG_MODEL, Switch.DUPLICATE_IDS, Switch.CHANGING_IDS, Switch.FINISH_NULL])
async def test_row_53_ids_model_and_end_are_the_nodes_own(one: CloudNode, switch: Switch) -> None:
    one.arm(switch)
    answer = await one.ask()
    events = answer.events
    assert {event["model"] for event in events} == {"m"}
    assert {event["id"] for event in events} == {f"chatcmpl-{answer.headers['x-request-id']}"}
    assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] in ("stop", "length")
    await one.assert_clean()


async def test_row_54_certificate_that_does_not_verify_opens_the_breaker_as_a_fault_of_the_road(
    tmp_path: Path, one: CloudNode
) -> None:
    make_certificate(tmp_path)
    pem = tmp_path / "provider.pem"
    async with (
        Emulator(fast(tls_cert=pem, tls_key=pem)) as secured,
        cloud_node(tmp_path / "tls", "one", base_url=secured.base_url) as node,
    ):
        for _ in range(5):
            answer = await node.ask()
            assert (answer.status, answer.error["code"]) == (502, "upstream_tls")
        assert node.standing().breaker.opened_by is Verdict.LOCAL_FAULT
        assert (await node.ask()).status == 503
        assert secured.log.records == []
        assert node.asked() == 0


async def test_row_55_name_that_does_not_exist_is_a_502_of_the_road(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with cloud_node(tmp_path, "one", base_url="https://nowhere.invalid/v1") as node:
        answer = await node.ask()
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")


async def test_row_55_resolver_that_hangs_is_cut_at_the_connect_clock_and_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Try again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    clocks = {"connect_s": 0.3, "first_content_s": 5.0}
    async with cloud_node(tmp_path, "one", base_url="https://nowhere.invalid/v1", clocks=clocks) as node:
        began_s = time.monotonic()
        asking = asyncio.create_task(node.ask())
        longest_s = 0.0
        while not asking.done():
            before_s = time.monotonic()
            await asyncio.sleep(0.005)
            longest_s = max(longest_s, time.monotonic() - before_s)
        answer = await asking
        released.set()
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert time.monotonic() - began_s < 2.0
    assert longest_s < 0.25  # the loop went on all the while


async def test_row_56_redirect_is_not_followed_and_the_key_not_sent(tmp_path: Path) -> None:
    async with (
        Emulator(fast()) as elsewhere,
        cloud_node(tmp_path, "one", emulator={"redirect_to": f"{elsewhere.base_url}/chat/completions"}) as node,
    ):
        node.arm(Switch.REDIRECT)
        answer = await node.ask()
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        assert elsewhere.log.records == []
        await node.assert_clean()


@BOTH
async def test_row_57_gzip_bomb_is_not_unpacked(one: CloudNode, stream: bool) -> None:
    one.arm(Switch.GZIP_BOMB)
    answer = await one.ask(stream=stream)
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    await one.assert_clean()


@BOTH
async def test_row_58_reset_of_a_kept_connection_is_one_free_retry_nobody_notices(one: CloudNode, stream: bool) -> None:
    assert (await one.ask(stream=stream)).status == 200
    one.arm(Switch.RESET_ON_REUSE, count=1)
    answer = await one.ask(stream=stream)
    assert answer.status == 200
    assert (one.outcome.attempts, len(one.clouds["one"].bill.records)) == (1, 2)
    assert one.outcome.cost_nano_usd == one.clouds["one"].bill.records[-1]["cost_nano_usd"]
    await one.assert_clean()


async def test_row_59_flapping_provider_opens_the_breaker_and_gets_no_storm(one: CloudNode) -> None:
    one.arm(Switch.FLAPPING)
    requests = 0
    while one.standing().is_available(time.monotonic()):
        await asyncio.gather(*(one.ask() for _ in range(10)))
        requests += 10
        assert requests < 200
    assert one.standing().breaker.state(time.monotonic()) is BreakerState.OPEN
    assert one.asked() <= 1.2 * requests + 3
    await one.assert_clean()


async def test_row_59_provider_that_is_down_and_back_is_found_by_its_health_check(one: CloudNode) -> None:
    port = int(one.clouds["one"].url.rpartition(":")[2])
    assert await one.node.gate.probe("one") != ()
    await one.node.health.check("one")
    await one.clouds["one"].stop()
    for _ in range(4):
        assert (await one.ask()).status in (502, 503)
    assert not one.standing().is_available(time.monotonic())
    await one.node.health.check("one")
    async with Emulator(fast(port=port)) as back:
        await one.node.health.check("one")
        assert [(await one.ask()).status for _ in range(2)] == [200, 200]
        assert len(back.log.records) == 2
    assert one.standing().breaker.state(time.monotonic()) is BreakerState.CLOSED


async def test_clocks_of_one_model_replace_its_providers(tmp_path: Path) -> None:
    async with cloud_node(tmp_path, "one", model_clocks={MODEL: {"first_content_s": 0.2}}) as node:
        node.arm(Switch.SILENCE)
        began_s = time.monotonic()
        assert (await node.ask()).status == 504
        assert time.monotonic() - began_s < 2.0


async def test_request_that_two_silent_providers_keep_is_a_504_after_two_attempts(tmp_path: Path) -> None:
    async with cloud_node(tmp_path, "one", "two", clocks={"first_content_s": 0.8}) as node:
        for name in ("one", "two"):
            node.arm(Switch.SILENCE, at=name)
        answer = await node.ask()
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        assert (node.outcome.attempts, node.asked("one"), node.asked("two")) == (2, 1, 1)
        await node.assert_clean()


async def test_isolated_provider_gets_nothing(tmp_path: Path) -> None:
    async with cloud_node(tmp_path, "one", isolated=True) as node:
        assert (await node.ask()).status == 503
        assert node.asked() == 0
        node.node.providers.restore("one", time.monotonic())
        assert (await node.ask()).status == 200


async def test_pinned_request_reaches_a_provider_on_the_premises(tmp_path: Path) -> None:
    pinned: dict[str, Any] = {"spillway": {"require_local": True}}
    async with cloud_node(tmp_path / "in", "one", zone="premises") as node:
        answer = await node.ask(**pinned)
        assert (answer.status, answer.headers["x-spillway-backend"]) == (200, "one")
    async with cloud_node(tmp_path / "out", "one") as node:
        answer = await node.ask(**pinned)
        assert (answer.status, answer.error["code"]) == (403, "private_not_servable")
        assert node.asked() == 0


MIX = [
    Switch.ERROR_500,
    Switch.ERROR_503,
    Switch.SILENCE,
    Switch.COMMENTS_ONLY,
    Switch.ERROR_IN_FIRST_EVENT,
    Switch.RESET_MID_STREAM,
    Switch.EOF_MID_UTF8,
    Switch.STALL_MID_STREAM,
    Switch.INVALID_JSON,
    Switch.RESET_ON_REUSE,
    Switch.USAGE_MISSING,
    Switch.USAGE_TENFOLD,
    Switch.BAD_REQUEST,
]


async def test_mix_of_faults_is_answered_to_the_last_request_and_leaves_nothing_behind(tmp_path: Path) -> None:
    clocks = {"first_content_s": 3.0, "between_chunks_s": 0.5, "total_s": 4.0}
    async with cloud_node(tmp_path, "one", "two", clocks=clocks) as node:
        for name in node.clouds:
            for switch in MIX:
                node.arm(switch, at=name, probability=0.02)
        asking = []
        async with asyncio.timeout(60):
            for index in range(300):
                asking.append(asyncio.create_task(node.ask(stream=index % 4 > 0)))
                await asyncio.sleep(0.01)
            answers = await asyncio.gather(*asking)
        assert {answer.status for answer in answers} <= {200, 502, 503, 504}
        assert sum(answer.status == 200 for answer in answers) > 0.9 * len(answers)
        for answer in answers:
            if answer.status == 200 and b'"error"' not in answer.body:
                assert answer.text.startswith("Emulated")  # whole, and of one piece
        assert len(node.node.outcomes) == len(answers)
        assert sum(outcome.attempts for outcome in node.node.outcomes) <= 1.2 * len(answers) + 3
        await node.assert_clean()
        kept = {"RequestHandler.start"}  # the emulators' side of connections that are kept for the next call
        left = [task.get_coro().__qualname__ for task in asyncio.all_tasks() if task is not asyncio.current_task()]  # type: ignore[union-attr]
        assert set(left) <= kept
