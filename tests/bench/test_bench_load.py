import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from _harness.load import Call, closed_loop, open_loop
from _harness.sse import StreamMeter
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
HELLO = b'data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_a_role_only_chunk_is_not_the_first_content() -> None:
    meter = StreamMeter()
    meter.feed(ROLE, 1.0)
    assert meter.first_content_s is None
    meter.feed(HELLO, 2.0)
    assert meter.first_content_s == 2.0


def test_a_comment_or_ping_is_not_content() -> None:
    meter = StreamMeter()
    meter.feed(b": ping\n\n" + ROLE, 1.0)
    assert meter.first_content_s is None


def test_gaps_are_between_content_chunks_and_usage_is_none() -> None:
    meter = StreamMeter()
    for now_s, frame in enumerate([ROLE, HELLO, HELLO, HELLO, USAGE, DONE]):
        meter.feed(frame, float(now_s))
    assert meter.gaps_s == [1.0, 1.0]
    assert meter.usage == {"completion_tokens": 2}
    assert meter.finished


def test_a_tool_call_is_content() -> None:
    meter = StreamMeter()
    meter.feed(b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\r\n\r\n', 1.0)
    assert meter.first_content_s == 1.0


def test_an_error_event_after_content_is_seen() -> None:
    meter = StreamMeter()
    meter.feed(HELLO + b'data: {"error":{"message":"engine died"}}\n\n', 1.0)
    assert meter.error is not None
    assert "engine died" in meter.error


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_it_does_not_matter_where_the_network_cuts(cuts: list[int]) -> None:
    meter, rest = StreamMeter(), ROLE + HELLO * 3 + USAGE + DONE
    for cut in cuts:
        meter.feed(rest[:cut], 0.0)
        rest = rest[cut:]
    meter.feed(rest, 0.0)
    assert len(meter.gaps_s) == 2
    assert meter.usage == {"completion_tokens": 2}
    assert meter.finished


@pytest.fixture
async def server() -> AsyncIterator[str]:
    async def whole(request: web.Request) -> web.Response:
        asked = await request.json()
        if asked.get("fail"):
            return web.json_response({"error": {"message": "full"}}, status=429)
        return web.json_response({"choices": [], "usage": {"completion_tokens": asked["n"]}})

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-spillway-backend": "local"})
        await answer.prepare(request)
        for frame in [ROLE, HELLO, HELLO, USAGE, *([] if (await request.json()).get("cut") else [DONE])]:
            await answer.write(frame)
        return answer

    app = web.Application()
    app.add_routes([web.post("/whole", whole), web.post("/stream", stream)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def test_closed_loop_sends_exactly_the_requests_it_was_asked_for(server: str) -> None:
    run = await closed_loop(
        lambda index: Call(f"{server}/whole", json.dumps({"n": index}).encode()), connections=4, requests=10
    )
    assert [record.usage for record in run.records] == [{"completion_tokens": n} for n in range(10)]
    assert all(record.ok for record in run.records)
    assert run.completed_inside == 10


async def test_a_refusal_is_a_record_with_its_status(server: str) -> None:
    run = await closed_loop(lambda _: Call(f"{server}/whole", b'{"fail": true}'), connections=1, requests=1)
    (record,) = run.records
    assert (record.status, record.ok, record.ttft_s) == (429, False, None)
    assert record.error is not None
    assert "full" in record.error


async def test_a_stream_gives_ttft_gaps_usage_and_headers(server: str) -> None:
    run = await open_loop([(0.0, Call(f"{server}/stream", b"{}", stream=True))])
    (record,) = run.records
    assert record.ok
    assert record.ttft_s is not None
    assert 0 < record.ttft_s <= record.end_s
    assert len(record.itl_s) == 1
    assert record.headers["x-spillway-backend"] == "local"


async def test_a_stream_cut_short_is_an_error_even_with_status_200(server: str) -> None:
    run = await open_loop([(0.0, Call(f"{server}/stream", b'{"cut": true}', stream=True))])
    (record,) = run.records
    assert record.status == 200
    assert not record.ok


async def test_a_server_that_is_gone_is_an_error_without_a_status() -> None:
    listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    run = await open_loop([(0.0, Call(f"http://127.0.0.1:{port}/whole", b"{}"))])
    assert run.records[0].status is None
    assert not run.records[0].ok
