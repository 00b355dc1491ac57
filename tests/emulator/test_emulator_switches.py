"""Every switch shows a client what its summary says, and nothing a client sends can set one."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator, Callable
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from node.emulator import Emulator, Switch
from node.emulator.refusals import GZIP_BOMB_BYTES
from node.emulator.replies import LONG_LINE_BYTES, STREAM_ONLY
from tests.emulator.emulator_client import KEY, Heard, Wire, ask, chat, fast, streaming, until

Check = Callable[[Heard], bool]


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(fast(log_prompts=True)) as running:
        yield running


def retry_after(heard: Heard) -> str | None:
    return heard.headers.get("retry-after")


def error(heard: Heard) -> dict[str, Any]:
    found = heard.json()["error"]
    assert isinstance(found, dict)
    return found


def text_of(heard: Heard) -> str:
    parts = [event["choices"][0]["delta"].get("content", "") for event in heard.events() if event["choices"]]
    return "".join(parts)


REFUSALS: dict[Switch, Check] = {
    Switch.RATE_LIMIT: lambda heard: heard.status == 429 and retry_after(heard) is None,
    Switch.RATE_LIMIT_SECONDS: lambda heard: heard.status == 429 and retry_after(heard) == "7",
    Switch.RATE_LIMIT_DATE: lambda heard: parsedate_to_datetime(retry_after(heard) or "").tzinfo is not None,
    Switch.RATE_LIMIT_ZERO: lambda heard: heard.status == 429 and retry_after(heard) == "0",
    Switch.RATE_LIMIT_NEGATIVE: lambda heard: heard.status == 429 and retry_after(heard) == "-5",
    Switch.RATE_LIMIT_HUGE: lambda heard: heard.status == 429 and retry_after(heard) == "9999",
    Switch.RATE_LIMIT_NONSENSE: lambda heard: heard.status == 429 and retry_after(heard) == "abc",
    Switch.RATE_LIMIT_IN_BODY: lambda heard: retry_after(heard) is None and error(heard)["retry_after"] == 1.2,
    Switch.PAYMENT_REQUIRED: lambda heard: heard.status == 402,
    Switch.INSUFFICIENT_QUOTA: lambda heard: heard.status == 429 and error(heard)["type"] == "insufficient_quota",
    Switch.UNAUTHORIZED: lambda heard: heard.status == 401 and KEY in error(heard)["message"],
    Switch.FORBIDDEN: lambda heard: heard.status == 403,
    Switch.BAD_REQUEST: lambda heard: heard.status == 400,
    Switch.ERROR_500: lambda heard: heard.status == 500 and heard.body.startswith(b"<html>"),
    Switch.ERROR_502: lambda heard: heard.status == 502 and heard.body.startswith(b"<html>"),
    Switch.ERROR_503: lambda heard: heard.status == 503 and heard.headers["content-type"].startswith("text/html"),
    Switch.ERROR_504: lambda heard: heard.status == 504 and heard.body.startswith(b"<html>"),
    Switch.FLAPPING: lambda heard: heard.status == 503 and bool(error(heard)),
    Switch.REDIRECT: lambda heard: heard.status == 301 and heard.headers["location"].startswith("https://elsewhere."),
    Switch.GZIP_BOMB: lambda heard: (
        heard.headers["content-encoding"] == "gzip"
        and len(heard.body) < 200_000
        and len(zlib.decompress(heard.body, 31)) > GZIP_BOMB_BYTES
    ),
}


@pytest.mark.parametrize("switch", REFUSALS)
@pytest.mark.parametrize("body", [chat(), streaming()], ids=["whole", "stream"])
async def test_refusal(emulator: Emulator, switch: Switch, body: dict[str, Any]) -> None:
    emulator.switches.arm(switch, probability=1.0)
    assert REFUSALS[switch](await ask(emulator, body))
    assert emulator.bill.records == []
    assert emulator.log.records[0]["switch"] == switch


SILENT: dict[Switch, Check] = {
    Switch.SILENCE: lambda heard: heard.status == 0,
    Switch.HEADERS_THEN_HANG: lambda heard: heard.status == 200 and heard.body == b"",
    Switch.COMMENTS_ONLY: lambda heard: bool(heard.body) and not heard.body.replace(b": keep-alive", b"").strip(),
}


@pytest.mark.parametrize("switch", SILENT)
@pytest.mark.parametrize("body", [chat(), streaming()], ids=["whole", "stream"])
async def test_no_answer(emulator: Emulator, switch: Switch, body: dict[str, Any]) -> None:
    emulator.switches.arm(switch)
    heard = await ask(emulator, body, patience_s=0.15)
    assert heard.end == "open"
    assert SILENT[switch](heard)
    await until(lambda: len(emulator.bill.records) == 1)
    assert emulator.bill.records[0]["completion_tokens"] == 0
    assert emulator.bill.records[0]["state"] == "client_closed"


STREAMS: dict[Switch, Check] = {
    Switch.ERROR_IN_FIRST_EVENT: lambda heard: "error" in heard.events()[0] and len(heard.events()) == 1,
    Switch.ERROR_MID_STREAM: lambda heard: "error" in heard.events()[-1] and len(heard.events()) > 5,
    Switch.RESET_MID_STREAM: lambda heard: heard.end == "reset",
    Switch.CLOSE_MID_STREAM: lambda heard: heard.end == "cut" and text_of(heard).startswith("Emulated"),
    Switch.EOF_WITHOUT_DONE: lambda heard: (
        heard.end == "clean" and heard.body.endswith(b"}\n\n") and len(heard.events()) > 5
    ),
    Switch.EOF_MID_JSON: lambda heard: heard.end == "clean" and not heard.body.endswith(b"\n\n"),
    Switch.EOF_MID_UTF8: lambda heard: heard.end == "clean" and heard.body.endswith(b" \xe2"),
    Switch.INVALID_JSON: lambda heard: b'data: {"id": oops}\n\n' in heard.body and b"[DONE]" in heard.body,
    Switch.WRONG_OBJECT: lambda heard: {event["object"] for event in heard.events()} == {"thing"},
    Switch.MISSING_CHOICES: lambda heard: all("choices" not in event for event in heard.events()),
    Switch.LONG_LINE: lambda heard: max(map(len, heard.body.split(b"\n"))) > LONG_LINE_BYTES,
    Switch.EVENTS_AFTER_DONE: lambda heard: b"content" in heard.body.partition(b"[DONE]")[2],
    Switch.CRLF: lambda heard: heard.body.count(b"\r\n\r\n") > 5 and b"\n\n" not in heard.body,
    Switch.CR: lambda heard: heard.body.count(b"\r\r") > 5 and b"\n" not in heard.body,
    Switch.BOM: lambda heard: heard.body.startswith(b"\xef\xbb\xbfdata: "),
    Switch.SPLIT_UTF8: lambda heard: (
        any(write.endswith(b"\xe2") for write in heard.writes) and "—" in text_of(heard) and b"[DONE]" in heard.body
    ),
    Switch.WRONG_CONTENT_TYPE: lambda heard: (
        heard.headers["content-type"].startswith("text/html") and b"[DONE]" in heard.body
    ),
    Switch.JSON_FOR_STREAM: lambda heard: (
        heard.headers["content-type"] == "application/json" and heard.json()["object"] == "chat.completion"
    ),
    Switch.RESPONSES_SSE: lambda heard: (
        b"event: response.output_text.delta\n" in heard.body and heard.events()[-1]["type"] == "response.completed"
    ),
    Switch.USAGE_MISSING: lambda heard: all("usage" not in event for event in heard.events()),
    Switch.USAGE_ZERO: lambda heard: heard.events()[-1]["usage"]["completion_tokens"] == 0,
    Switch.USAGE_NEGATIVE: lambda heard: heard.events()[-1]["usage"]["completion_tokens"] == -1,
    Switch.USAGE_TENFOLD: lambda heard: heard.events()[-1]["usage"]["prompt_tokens"] == 50,
    Switch.USAGE_STRING: lambda heard: heard.events()[-1]["usage"]["prompt_tokens"] == "5",
    Switch.USAGE_EARLY: lambda heard: (
        "usage" in heard.events()[len(heard.events()) // 2 - 1] | heard.events()[len(heard.events()) // 2]
        and "usage" not in heard.events()[-1]
    ),
    Switch.USAGE_ON_CONTENT: lambda heard: any(
        "usage" in event and event["choices"][0]["delta"]["content"] for event in heard.events() if event["choices"]
    ),
    Switch.WRONG_MODEL: lambda heard: {event["model"] for event in heard.events()} == {"gpt-nonesuch-0"},
    Switch.DUPLICATE_IDS: lambda heard: {event["id"] for event in heard.events()} == {"chatcmpl-duplicate"},
    Switch.CHANGING_IDS: lambda heard: len({event["id"] for event in heard.events()}) > 5,
    Switch.FINISH_NULL: lambda heard: (
        not any(choice["finish_reason"] for event in heard.events() for choice in event["choices"])
    ),
}


@pytest.mark.parametrize("switch", STREAMS)
async def test_spoilt_stream(emulator: Emulator, switch: Switch) -> None:
    emulator.switches.arm(switch)
    heard = await ask(emulator, streaming())
    assert heard.status == 200
    assert STREAMS[switch](heard)
    assert len(emulator.bill.records) == 1
    assert (await ask(emulator, streaming())).status == 200


WHOLES: dict[Switch, Check] = {
    Switch.ERROR_IN_FIRST_EVENT: lambda heard: "error" in heard.json(),
    Switch.RESET_MID_STREAM: lambda heard: heard.end == "reset",
    Switch.CLOSE_MID_STREAM: lambda heard: heard.end == "cut",
    Switch.EOF_MID_JSON: lambda heard: heard.end == "clean" and not heard.body.endswith(b"}"),
    Switch.EOF_MID_UTF8: lambda heard: heard.body.endswith(b" \xe2"),
    Switch.INVALID_JSON: lambda heard: heard.body == b'{"id": oops}',
    Switch.WRONG_OBJECT: lambda heard: heard.json()["object"] == "thing",
    Switch.MISSING_CHOICES: lambda heard: "choices" not in heard.json(),
    Switch.LONG_LINE: lambda heard: len(heard.body) > LONG_LINE_BYTES and "choices" in heard.json(),
    Switch.EVENTS_AFTER_DONE: lambda heard: heard.body.endswith(b'{"more":true}'),
    Switch.BOM: lambda heard: heard.body.startswith(b"\xef\xbb\xbf{"),
    Switch.SPLIT_UTF8: lambda heard: len(heard.writes) > 1 and "choices" in heard.json(),
    Switch.WRONG_CONTENT_TYPE: lambda heard: (
        heard.headers["content-type"].startswith("text/html") and "choices" in heard.json()
    ),
    Switch.SSE_FOR_JSON: lambda heard: (
        heard.headers["content-type"].startswith("text/event-stream") and "usage" in heard.events()[-1]
    ),
    Switch.RESPONSES_SSE: lambda heard: heard.events()[-1]["type"] == "response.completed",
    Switch.USAGE_MISSING: lambda heard: "usage" not in heard.json(),
    Switch.USAGE_ZERO: lambda heard: heard.json()["usage"]["total_tokens"] == 0,
    Switch.USAGE_NEGATIVE: lambda heard: heard.json()["usage"]["total_tokens"] == -1,
    Switch.USAGE_TENFOLD: lambda heard: heard.json()["usage"]["prompt_tokens"] == 50,
    Switch.USAGE_STRING: lambda heard: heard.json()["usage"]["prompt_tokens"] == "5",
    Switch.WRONG_MODEL: lambda heard: heard.json()["model"] == "gpt-nonesuch-0",
    Switch.DUPLICATE_IDS: lambda heard: heard.json()["id"] == "chatcmpl-duplicate",
    Switch.FINISH_NULL: lambda heard: heard.json()["choices"][0]["finish_reason"] is None,
}


@pytest.mark.parametrize("switch", WHOLES)
async def test_spoilt_document(emulator: Emulator, switch: Switch) -> None:
    emulator.switches.arm(switch)
    heard = await ask(emulator, chat())
    assert heard.status == 200
    assert WHOLES[switch](heard)


@pytest.mark.parametrize("body", [chat(), streaming()], ids=["whole", "stream"])
async def test_stalled_answer_stays_half_and_open(emulator: Emulator, body: dict[str, Any]) -> None:
    emulator.switches.arm(Switch.STALL_MID_STREAM)
    heard = await ask(emulator, body, patience_s=0.25)
    assert heard.end == "open"
    assert b"Emulated" in heard.body or heard.body.startswith(b'{"id"')
    assert b"[DONE]" not in heard.body


async def test_endless_stream_goes_past_max_tokens_and_is_billed_to_it(emulator: Emulator) -> None:
    emulator.switches.arm(Switch.ENDLESS)
    heard = await ask(emulator, streaming(max_tokens=3), enough=lambda body: body.count(b'"content"') > 20)
    assert heard.end == "open"
    await until(lambda: len(emulator.bill.records) == 1)
    assert emulator.bill.records[0]["completion_tokens"] == 3


async def test_endless_document_never_ends(emulator: Emulator) -> None:
    emulator.switches.arm(Switch.ENDLESS)
    assert (await ask(emulator, chat(), enough=lambda body: body.endswith(b" " * 20))).end == "open"


async def test_reset_on_reuse_spares_a_fresh_connection(emulator: Emulator) -> None:
    emulator.switches.arm(Switch.RESET_ON_REUSE, count=1)
    wire = await Wire.open(emulator)
    assert (await wire.ask(chat())).status == 200
    heard = await wire.ask(chat())
    assert heard.status == 0
    assert heard.end == "reset"
    assert (await ask(emulator, chat())).status == 200
    assert len(emulator.bill.records) == 2


def test_every_switch_is_shown_by_a_test_here() -> None:
    alone = {Switch.STALL_MID_STREAM, Switch.ENDLESS, Switch.RESET_ON_REUSE}
    assert set(Switch) == alone | REFUSALS.keys() | SILENT.keys() | STREAMS.keys() | WHOLES.keys()
    assert STREAMS.keys() - WHOLES.keys() == STREAM_ONLY
    assert all(switch.summary for switch in Switch)


async def test_a_switch_that_does_not_apply_is_not_used_up(emulator: Emulator) -> None:
    emulator.switches.arm(Switch.CRLF, count=1)
    assert (await ask(emulator, chat())).json()["choices"]
    assert b"\r\n" in (await ask(emulator, streaming())).body


async def test_count_limits_a_switch_to_the_next_requests(emulator: Emulator) -> None:
    emulator.switches.arm(Switch.ERROR_500, count=2)
    assert [(await ask(emulator, chat())).status for _ in range(4)] == [500, 500, 200, 200]


async def test_flapping_follows_its_probability_and_the_seed() -> None:
    runs = []
    for _ in range(2):
        async with Emulator(fast(answer_tokens_median=2.0, answer_tokens_sigma=0.0)) as emulator:
            emulator.switches.arm(Switch.FLAPPING)
            runs.append([(await ask(emulator, chat())).status for _ in range(40)])
    assert runs[0] == runs[1]
    assert 8 <= runs[0].count(503) <= 32


async def test_switches_are_set_over_http(emulator: Emulator) -> None:
    async with aiohttp.ClientSession(emulator.url) as session:
        wanted = {"error_500": {"probability": 1, "count": 1}, "crlf": True, "cr": False}
        async with session.put("/emulator/switches", json=wanted) as answer:
            assert (await answer.json())["armed"] == {
                "error_500": {"probability": 1, "count": 1},
                "crlf": {"probability": 1.0, "count": None},
            }
        assert (await ask(emulator, chat())).status == 500
        async with session.get("/emulator/switches") as answer:
            shown = await answer.json()
            assert list(shown["armed"]) == ["crlf"]
            assert shown["known"]["silence"] == Switch.SILENCE.summary


@pytest.mark.parametrize(
    "wanted",
    [
        {"no_such": True},
        {"cr": {"probability": 2}},
        {"cr": {"probability": "often"}},
        {"cr": {"count": 0}},
        {"cr": {"count": 1.5}},
        {"cr": {"when": "now"}},
        {"cr": 3},
        ["cr"],
    ],
)
async def test_a_wrong_switch_setting_is_refused_and_changes_nothing(emulator: Emulator, wanted: Any) -> None:
    emulator.switches.arm(Switch.CRLF)
    async with (
        aiohttp.ClientSession(emulator.url) as session,
        session.put("/emulator/switches", json=wanted) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["message"]
    assert list(emulator.switches.as_json()["armed"]) == ["crlf"]


async def test_bill_and_log_are_read_over_http(emulator: Emulator) -> None:
    await ask(emulator, chat())
    async with aiohttp.ClientSession(emulator.url) as session:
        async with session.get("/emulator/bill") as answer:
            assert await answer.json() == {
                "total_nano_usd": emulator.billed_nano_usd,
                "records": emulator.bill.records,
            }
        async with session.get("/emulator/log") as answer:
            assert (await answer.json())["records"] == emulator.log.records


async def test_nothing_in_a_request_can_set_a_switch(emulator: Emulator) -> None:
    names = {f"x-{name}": switch.value for switch in Switch for name in ("switch", "emulator-switch", switch.value)}
    heard = await ask(emulator, chat(switch="error_500", emulator={"error_500": True}), headers=names)
    assert heard.status == 200
    assert json.loads(heard.body)["choices"]
    assert emulator.switches.as_json()["armed"] == {}
