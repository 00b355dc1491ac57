"""Every way a provider can fail one attempt, and the error the node makes of it."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from node.backend import Call, Chunk
from node.cloud.config import Caps
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
    error_body,
)
from node.money import Usage
from tests.cloud.cloud_upstream import (
    API_KEY,
    STREAM_END,
    STREAM_HEAD,
    STREAMING,
    Cloud,
    CloudMaker,
    Received,
    Upstream,
    completion,
    delta,
    event,
    frames,
    http,
    make_call,
    make_certificate,
    part,
    sse,
    usage,
)

BOTH = pytest.mark.parametrize("call", [make_call(), STREAMING], ids=["plain", "stream"])
PROMPT_TOKENS = 14  # four bytes of the encoded messages each
NOW_S = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()


async def failure(cloud: Cloud, call: Call = STREAMING) -> tuple[SpillwayError, list[Chunk], Usage]:
    """The error a call ends in, what came before it, and what it may have cost."""
    backend = cloud.backend()
    chunks: list[Chunk] = []
    try:
        async for chunk in backend.open(call):
            chunks.append(chunk)
    except SpillwayError as error:
        return error, chunks, backend.usage_so_far()
    raise AssertionError("the call did not fail")


@pytest.mark.parametrize(
    ("said", "meant_s"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-5", None),
        ("9999", 60.0),
        ("abc", None),
        ("nan", None),
        ("inf", None),
        (format_datetime(datetime(2026, 11, 23, 12, 0, 9, tzinfo=UTC), usegmt=True), 9.0),
        (format_datetime(datetime(2026, 11, 23, 11, 0, 0, tzinfo=UTC), usegmt=True), None),
    ],
)
async def test_rate_limit_carries_a_sane_retry_time(
    upstream: Upstream, make_cloud: CloudMaker, said: str, meant_s: float | None
) -> None:
    upstream.sends(http(b"slow down", "429 Too Many Requests", Retry_After=said))
    error, _, used = await failure(make_cloud(now_s=NOW_S))
    assert type(error) is UpstreamRateLimited
    assert error.retry_after_s == meant_s
    assert used == Usage(0, 0)


@BOTH
@pytest.mark.parametrize(
    ("status", "error", "ours", "retry_after_s"),
    [
        (429, {"type": "rate_limit_error", "message": "m"}, UpstreamRateLimited, None),
        (
            429,
            {"code": "rate_limit_exceeded", "type": "rate_limit", "retry_after": 1.2, "request_id": "hs_req_1"},
            UpstreamRateLimited,
            1.2,
        ),
        (200, {"code": "rate_limit_exceeded", "type": "rate_limit", "retry_after": 1.2}, UpstreamRateLimited, 1.2),
        (200, {"code": 429, "message": "m"}, UpstreamRateLimited, None),
        (429, {"code": "insufficient_quota", "message": "m"}, UpstreamQuota, None),
        (402, {"message": "m"}, UpstreamQuota, None),
        (401, {"code": "invalid_api_key", "message": f"wrong key {API_KEY}"}, UpstreamAuth, None),
        (403, {"message": "m"}, UpstreamAuth, None),
        (400, {"type": "invalid_request_error", "message": "m"}, UpstreamRejected, None),
        (404, {"message": "m"}, UpstreamRejected, None),
        (422, {"message": "m"}, UpstreamRejected, None),
        (500, {"message": "m"}, UpstreamError, None),
        (503, {"message": "m", "retry_after": 3}, UpstreamError, 3.0),
        (200, {"message": "m"}, UpstreamError, None),
        (200, "it broke", UpstreamError, None),
    ],
)
async def test_both_error_shapes_are_understood(
    upstream: Upstream,
    cloud: Cloud,
    call: Call,
    status: int,
    error: Any,
    ours: type[UpstreamError],
    retry_after_s: float | None,
) -> None:
    upstream.sends(http({"error": error}, f"{status} Whatever"))
    raised, chunks, used = await failure(cloud, call)
    assert (type(raised), raised.retry_after_s, chunks, used) == (ours, retry_after_s, [], Usage(0, 0))
    assert API_KEY.encode() not in error_body(raised)


@BOTH
@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_html_error_pages_are_not_shown(upstream: Upstream, cloud: Cloud, call: Call, status: int) -> None:
    upstream.sends(http(b"<html><h1>Bad gateway at 10.0.0.7</h1></html>", f"{status} Oh", content_type="text/html"))
    error, _, _ = await failure(cloud, call)
    assert type(error) is UpstreamError
    assert error.message == f"holy answered with status {status}"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("max_tokens is too large", ": max_tokens is too large"),
        (f"key {API_KEY} at https://u:p@host/x", ": key [redacted] at [redacted]"),
        ("Authorization: Bearer abcdef sk-proj-12345678", ": Authorization: [redacted] [redacted]"),
        ("<p>no</p>", ""),
        ("Traceback (most recent call last):\n  File x", ""),
        ("two\nlines\x00", ": two lines"),
        ("w" * 500, ": " + "w" * 199 + "…"),
    ],
)
async def test_rejection_is_explained_in_one_clean_line(
    upstream: Upstream, cloud: Cloud, said: str, shown: str
) -> None:
    upstream.sends(http({"error": {"message": said}}, "400 Bad Request"))
    error, _, _ = await failure(cloud)
    assert error.message == "holy rejected the request" + shown


async def test_error_that_hangs_in_its_body_is_still_its_status(upstream: Upstream, cloud: Cloud) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 100000\r\n\r\n{" + b" " * 70_000)

    upstream.reply = reply
    error, _, _ = await failure(cloud)
    assert error.message == "holy answered with status 503"


async def test_redirect_is_not_followed(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(b"", "301 Moved", Location=f"http://127.0.0.1:{upstream.port}/elsewhere"))
    error, _, _ = await failure(cloud)
    assert "redirect" in error.message
    assert [request.path for request in upstream.received] == ["/v1/chat/completions"]


@BOTH
async def test_compressed_answer_is_not_unpacked(upstream: Upstream, cloud: Cloud, call: Call) -> None:
    upstream.sends(http(gzip.compress(b"0" * 1_000_000), Content_Encoding="gzip"))
    error, _, _ = await failure(cloud, call)
    assert "compressed" in error.message
    assert upstream.received[0].headers["accept-encoding"] == "identity"
    assert cloud.records[0].bytes_in == 0


@pytest.mark.parametrize(
    "first",
    [
        event({"error": {"code": "rate_limit_exceeded", "message": "m"}}),
        b'event: error\ndata: {"code": "rate_limit_exceeded", "message": "m"}\n\n',
        event({"type": "error", "error": {"type": "rate_limit_error", "message": "m"}}),
        event({"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded"}}}),
    ],
    ids=["data", "event: error", "type error", "response.failed"],
)
async def test_error_as_first_event_is_a_failure_that_cost_nothing(
    upstream: Upstream, cloud: Cloud, first: bytes
) -> None:
    upstream.sends(sse(first))
    error, chunks, used = await failure(cloud)
    assert (type(error), chunks, used) == (UpstreamRateLimited, [], Usage(0, 0))


async def test_error_event_in_mid_stream_comes_after_what_was_said(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(STREAM_HEAD + part(event(delta("Hel")) + event({"error": {"message": "m"}})) + STREAM_END)
    error, chunks, used = await failure(cloud)
    assert type(error) is UpstreamError
    assert [chunk.has_content for chunk in chunks] == [True]
    assert used == Usage(PROMPT_TOKENS, 1, estimated=True)


GOOD = part(event(delta("Hel")))


@pytest.mark.parametrize(
    "rest",
    [
        STREAM_END,
        b"",
        part(b'data: {"choices": [{"del') + STREAM_END,
        part(b'data: {"choices": [{"delta": {"content": "\xf0\x9f') + STREAM_END,
        part(b"data: not json\n\n"),
        part(b"data: " + b"[" * 100_000 + b"\n\n"),
        part(b'data: {"choices": [{"index": 0, "delta": {"content": "\xff"}}]}\n\n'),
        part(b'data: {"choices": [{"index": 0, "delta": {"content": 5}}]}\n\n'),
        part(b'data: {"choices": "none"}\n\n'),
        part(b"data: {}\n\n"),
        part(b"data: " + b"x" * 1_100_000),
    ],
    ids=[
        "clean end",
        "connection closed",
        "end in JSON",
        "end in a character",
        "no JSON",
        "deep JSON",
        "no UTF-8",
        "content a number",
        "choices a string",
        "no choices",
        "endless line",
    ],
)
async def test_stream_that_breaks_is_truncated_and_its_tokens_are_counted(
    upstream: Upstream, cloud: Cloud, rest: bytes
) -> None:
    go_on = asyncio.Event()

    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + GOOD)
        await go_on.wait()
        writer.write(rest)
        writer.close()

    upstream.reply = reply
    backend = cloud.backend()
    stream = backend.open(STREAMING)
    assert (await anext(stream)).output_tokens == 1
    go_on.set()
    with pytest.raises(UpstreamTruncated):
        await anext(stream)
    assert backend.usage_so_far() == Usage(PROMPT_TOKENS, 1, estimated=True)


@BOTH
async def test_reset_in_mid_answer_is_truncated(upstream: Upstream, cloud: Cloud, call: Call) -> None:
    go_on = asyncio.Event()

    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + GOOD if call.stream else b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{")
        await go_on.wait()
        reset(writer)

    upstream.reply = reply
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    error, _, _ = await failure(cloud, call)
    assert type(error) is UpstreamTruncated


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    "caps", [Caps(stream_bytes=2000), Caps(events=5), Caps(event_bytes=50)], ids=["bytes", "events", "line"]
)
async def test_stream_beyond_its_caps_is_cut(upstream: Upstream, make_cloud: CloudMaker, caps: Caps) -> None:
    upstream.sends(sse(*[delta("a") for _ in range(30)]))
    error, _, _ = await failure(make_cloud(caps=caps))
    assert type(error) is UpstreamTruncated


async def test_document_beyond_its_cap_is_cut(upstream: Upstream, make_cloud: CloudMaker) -> None:
    upstream.sends(http(completion("a" * 5000)))
    for call in (make_call(), STREAMING):
        error, _, _ = await failure(make_cloud(caps=Caps(document_bytes=1000)), call)
        assert type(error) is UpstreamTruncated


async def test_stream_that_never_ends_is_cut_past_max_tokens(upstream: Upstream, cloud: Cloud) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while not writer.is_closing():
            writer.write(part(event(delta("a"))))
            await writer.drain()

    upstream.reply = reply
    error, chunks, _ = await failure(cloud)
    assert type(error) is UpstreamTruncated
    assert chunks[-1].output_tokens <= 2 * STREAMING.max_output_tokens + 65
    await asyncio.wait_for(upstream.hung_up.wait(), 5)


async def hang(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def head_then_hang(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD)
    await asyncio.Event().wait()


async def comments_only(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD)
    while True:
        writer.write(part(b": still here\n\n") + part(event(delta(role="assistant"))))
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("reply", [hang, head_then_hang, comments_only])
async def test_stream_without_content_is_cut_at_its_first_clock(
    upstream: Upstream, make_cloud: CloudMaker, reply: Any
) -> None:
    upstream.reply = reply
    error, _, used = await failure(make_cloud(first_content_s=0.1))
    assert type(error) is UpstreamTimeout
    assert used == Usage(PROMPT_TOKENS, 0, estimated=True)


async def test_what_earlier_attempts_spent_is_taken_off_the_clocks(upstream: Upstream, cloud: Cloud) -> None:
    upstream.reply = hang
    for call, spent_s in ((STREAMING, 29.9), (make_call(), 599.9)):
        stream = cloud.backend(spent_s=spent_s).open(call)
        async with asyncio.timeout(10):
            with pytest.raises(UpstreamTimeout):
                await anext(stream)


async def test_plain_call_is_bound_by_the_total_clock_only(upstream: Upstream, make_cloud: CloudMaker) -> None:
    upstream.reply = hang
    error, _, _ = await failure(make_cloud(first_content_s=0.01, total_s=0.1), make_call())
    assert type(error) is UpstreamTimeout


async def test_silence_after_content_is_cut_comments_or_not(upstream: Upstream, make_cloud: CloudMaker) -> None:
    async def reply(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + GOOD)
        while True:
            writer.write(part(b": still here\n\n"))
            await writer.drain()
            await asyncio.sleep(0.01)

    upstream.reply = reply
    error, chunks, used = await failure(make_cloud(between_chunks_s=0.1))
    assert type(error) is UpstreamTimeout
    assert len(chunks) == 1
    assert used == Usage(PROMPT_TOKENS, 1, estimated=True)


async def test_broken_http_chunk_ends_the_answer_within_its_clock(upstream: Upstream, make_cloud: CloudMaker) -> None:
    # aiohttp closes the connection but does not tell the reader of the body.
    go_on = asyncio.Event()

    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + GOOD)
        await go_on.wait()
        writer.write(b"zz\r\n")

    upstream.reply = reply
    stream = make_cloud(between_chunks_s=0.1).backend().open(STREAMING)
    await anext(stream)
    go_on.set()
    with pytest.raises((UpstreamTimeout, UpstreamTruncated)):
        await anext(stream)


async def test_stream_is_cut_at_the_total_clock(upstream: Upstream, make_cloud: CloudMaker) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(GOOD)
            await writer.drain()
            await asyncio.sleep(0.02)

    upstream.reply = reply
    error, _, _ = await failure(make_cloud(total_s=0.2))
    assert type(error) is UpstreamTimeout


async def test_refused_connection_is_our_side_of_the_road(make_cloud: CloudMaker) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error, _, used = await failure(make_cloud(base_url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1"))
    assert type(error) is UpstreamConnect
    assert used == Usage(0, 0)


async def test_handshake_that_never_ends_is_cut_at_the_connect_clock(make_cloud: CloudMaker) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        cloud = make_cloud(base_url=f"https://127.0.0.1:{silent.getsockname()[1]}/v1", connect_s=0.1)
        error, _, used = await failure(cloud)
    assert type(error) is UpstreamConnectTimeout
    assert "connect" in error.message
    assert used == Usage(0, 0)


async def test_pool_with_no_free_connection_is_our_side_of_the_road(upstream: Upstream, make_cloud: CloudMaker) -> None:
    upstream.reply = head_then_hang
    cloud = make_cloud(max_connections=1, connect_s=0.1)
    first = cloud.backend().open(STREAMING)
    waiting = asyncio.ensure_future(anext(first))
    await upstream.arrived.wait()
    error, _, _ = await failure(cloud)
    assert type(error) is UpstreamPoolFull
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize(
    "certificate", [{}, {"host": "other.example"}, {"valid_days": -1}], ids=["self-signed", "wrong host", "expired"]
)
async def test_row_54_certificate_that_does_not_verify_is_refused(
    make_cloud: CloudMaker, upstream: Upstream, tmp_path: Path, certificate: dict[str, Any]
) -> None:
    authority, context = make_certificate(tmp_path, **certificate)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trust = {"ca_file": str(authority)} if certificate else {}
    error, _, used = await failure(make_cloud(base_url=f"https://127.0.0.1:{port}/v1", **trust))
    server.close()
    assert type(error) is UpstreamTls
    assert used == Usage(0, 0)
    assert upstream.received == []


async def test_certificate_of_the_configured_authority_is_accepted(
    make_cloud: CloudMaker, upstream: Upstream, tmp_path: Path
) -> None:
    authority, context = make_certificate(tmp_path)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    upstream.sends(http(completion()))
    document = await make_cloud(base_url=f"https://127.0.0.1:{port}/v1", ca_file=str(authority)).document()
    server.close()
    assert document["choices"][0]["message"]["content"] == "Hello there"


async def test_connection_that_died_in_the_pool_is_replaced_once(upstream: Upstream, cloud: Cloud) -> None:
    async def reply(request: Received, writer: asyncio.StreamWriter) -> None:
        if len(upstream.received) == 2:
            reset(writer)
        else:
            writer.write(http(completion()))

    upstream.reply = reply
    for _ in range(2):
        assert (await cloud.document())["choices"][0]["message"]["content"] == "Hello there"
    assert [request.connection for request in upstream.received] == [0, 0, 1]
    assert [record.resent for record in cloud.records] == [False, True]
    assert cloud.records[1].bytes_out == 2 * cloud.records[0].bytes_out


@BOTH
async def test_new_connection_that_dies_unanswered_is_not_tried_again(
    upstream: Upstream, cloud: Cloud, call: Call
) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    upstream.reply = reply
    error, _, used = await failure(cloud, call)
    assert type(error) is UpstreamError
    assert used == Usage(0, 0)
    assert len(upstream.received) == 1


async def test_connection_that_dies_twice_is_given_up(upstream: Upstream, cloud: Cloud) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        if len(upstream.received) == 1:
            writer.write(http(completion()))
        else:
            reset(writer)

    upstream.reply = reply
    await cloud.document()
    error, _, _ = await failure(cloud, make_call())
    assert type(error) is UpstreamError
    assert len(upstream.received) == 3


async def test_answer_that_is_not_http_is_an_upstream_error(upstream: Upstream, cloud: Cloud) -> None:
    for garbage in (b"220 smtp ready\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000 + b"\r\n\r\n"):
        upstream.sends(garbage, close=True)
        error, _, _ = await failure(cloud)
        assert type(error) is UpstreamError


async def test_frames_before_a_failure_are_whole(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(delta("Hel"), usage(), b"data: {\n\n"))
    _, chunks, _ = await failure(cloud)
    assert len(frames(chunks)) == 1
