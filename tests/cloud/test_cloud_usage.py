"""What is charged when a provider's usage report is missing, wrong or a lie."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.backend import Kind
from node.money import Usage
from tests.cloud.cloud_upstream import (
    STREAM_HEAD,
    STREAMING,
    Cloud,
    Received,
    Upstream,
    completion,
    delta,
    event,
    frames,
    http,
    make_call,
    part,
    sse,
    usage,
)

TWO = [delta("Hello"), delta(" there", finish="stop")]


@pytest.mark.parametrize(
    ("reported", "charged"),
    [
        ([], Usage(14, 3, estimated=True)),
        ([usage(7, 2)], Usage(7, 2)),
        ([usage(0, 0)], Usage(14, 3, estimated=True, suspect=True)),
        ([usage(7, 0)], Usage(7, 3, estimated=True, suspect=True)),
        ([usage(7, 1)], Usage(7, 2, suspect=True)),
        ([usage(-7, -2)], Usage(14, 3, estimated=True, suspect=True)),
        ([usage("7", "2")], Usage(14, 3, estimated=True, suspect=True)),
        ([usage(True, 2.0)], Usage(14, 3, estimated=True, suspect=True)),
        ([usage(7, 20)], Usage(14, 3, estimated=True, suspect=True)),
        ([usage(70_000, 2)], Usage(14, 3, estimated=True, suspect=True)),
        ([{"choices": [], "usage": "lots"}], Usage(14, 3, estimated=True, suspect=True)),
        ([usage(7, 2), usage(7, -2)], Usage(7, 2, suspect=True)),
        ([usage(7, 1), usage(7, 2)], Usage(7, 2)),
        ([usage(7, 0), usage(0, 2)], Usage(7, 2)),
        ([{"choices": None, "usage": {"input_tokens": 7, "output_tokens": 2}}], Usage(7, 2)),
    ],
    ids=[
        "missing",
        "right",
        "zero",
        "no completion",
        "fewer than deltas",
        "negative",
        "strings",
        "not integers",
        "over max_tokens",
        "more than the prompt has bytes",
        "no object",
        "bad after good",
        "cumulative",
        "in two parts",
        "other names",
    ],
)
async def test_stream_is_charged_what_can_be_believed(
    upstream: Upstream, cloud: Cloud, reported: list[dict[str, Any]], charged: Usage
) -> None:
    upstream.sends(sse(*TWO, *reported))
    chunks = await cloud.ask(STREAMING)
    assert chunks[-1].usage == charged
    assert frames(chunks)[-1]["usage"]["completion_tokens"] == charged.completion_tokens


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_usage_is_taken_from_any_chunk(upstream: Upstream, cloud: Cloud, position: int) -> None:
    chunks: list[dict[str, Any]] = [*TWO]
    chunks.insert(position, usage())
    upstream.sends(sse(*chunks))
    assert (await cloud.ask(STREAMING))[-1].usage == Usage(7, 2)
    upstream.sends(sse(TWO[0] | {"usage": usage()["usage"]}, TWO[1] | {"usage": None}))
    assert (await cloud.ask(STREAMING))[-1].usage == Usage(7, 2)


@pytest.mark.parametrize(
    ("reported", "charged"),
    [
        (None, Usage(14, 3, estimated=True)),
        ({"prompt_tokens": 70_000, "completion_tokens": 20}, Usage(14, 3, estimated=True, suspect=True)),
        ({"prompt_tokens": 7, "completion_tokens": -2}, Usage(14, 3, estimated=True, suspect=True)),
    ],
)
async def test_document_is_charged_what_can_be_believed(
    upstream: Upstream, cloud: Cloud, reported: Any, charged: Usage
) -> None:
    upstream.sends(http(completion(usage=reported)))
    (chunk,) = await cloud.ask(make_call())
    assert chunk.usage == charged


async def test_nodes_own_prompt_count_stands_in_where_it_is_known(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(completion(usage=None)))
    backend = cloud.backend(prompt_tokens_estimate=9)
    (chunk,) = [chunk async for chunk in backend.open(make_call())]
    assert chunk.usage == Usage(9, 3, estimated=True)


async def test_more_tokens_than_bytes_is_charged_but_suspect(upstream: Upstream, cloud: Cloud) -> None:
    call = make_call(max_output_tokens=1000)
    upstream.sends(http(completion(usage={"prompt_tokens": 7, "completion_tokens": 200})))
    assert (await cloud.ask(call))[0].usage == Usage(7, 200, suspect=True)
    details = {"completion_tokens_details": {"reasoning_tokens": 198}}
    upstream.sends(http(completion(usage={"prompt_tokens": 7, "completion_tokens": 200} | details)))
    assert (await cloud.ask(call))[0].usage == Usage(7, 200)
    assert (await cloud.document(call))["usage"]["completion_tokens_details"] == {"reasoning_tokens": 198}


async def test_echoed_prompt_is_not_counted_against_the_report(upstream: Upstream, cloud: Cloud) -> None:
    pieces = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in ("say ", "it", "!")]
    upstream.sends(sse(*pieces, usage(2, 1)))
    call = make_call(kind=Kind.COMPLETION, body={"prompt": "say it", "echo": True}, stream=True)
    assert (await cloud.ask(call))[-1].usage == Usage(2, 1)


async def test_client_that_leaves_closes_the_stream_at_once_and_pays_for_what_came_and_may_be_on_its_way(
    upstream: Upstream, cloud: Cloud
) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + part(event(delta("Hello"))))
        await asyncio.Event().wait()

    upstream.reply = reply
    backend = cloud.backend()
    assert backend.usage_so_far() == Usage(0, 0)
    stream = backend.open(STREAMING)
    await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(upstream.hung_up.wait(), 5)
    assert backend.usage_so_far() == Usage(14, 16, estimated=True)  # of at most 16
    assert cloud.records[0].bytes_in > 0


async def test_cancelled_wait_for_the_first_byte_closes_the_connection(upstream: Upstream, cloud: Cloud) -> None:
    async def hang(_: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    upstream.reply = hang
    backend = cloud.backend()
    waiting = asyncio.ensure_future(anext(backend.open(STREAMING)))
    await upstream.arrived.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(upstream.hung_up.wait(), 5)
    assert backend.usage_so_far() == Usage(14, 16, estimated=True)
    assert [(record.status, record.bytes_in) for record in cloud.records] == [(None, 0)]


async def test_connection_is_kept_for_the_next_call_after_a_stream(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(*TWO, usage()))
    for _ in range(3):
        await cloud.ask(STREAMING)
    assert [request.connection for request in upstream.received] == [0, 0, 0]


async def test_stream_that_stays_open_after_done_does_not_hold_the_answer(upstream: Upstream, cloud: Cloud) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + b"".join(part(event(each)) for each in TWO) + part(b"data: [DONE]\n\n"))
        await asyncio.Event().wait()

    upstream.reply = reply
    chunks = await asyncio.wait_for(cloud.ask(STREAMING), 5)
    assert chunks[-1].usage == Usage(14, 3, estimated=True)
