"""What a client of a cloud model gets, whatever form the provider chose to answer in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from node.backend import Kind
from node.errors import UpstreamTruncated
from node.money import Usage
from tests.cloud.cloud_upstream import (
    STREAM_END,
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
    text,
    usage,
)

TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
RESPONSES: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
    {"type": "response.output_text.delta", "delta": "Hel"},
    {"type": "response.output_text.delta", "delta": "lo"},
    {
        "type": "response.completed",
        "response": {
            "status": "completed",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}],
            "usage": {"input_tokens": 7, "output_tokens": 2},
        },
    },
]


async def test_answer_carries_our_id_model_and_price(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(completion()))
    (chunk,) = await cloud.ask(make_call())
    assert json.loads(chunk.data) == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cost_usd": 0.00003},
    }
    assert b'"cost_usd":0.00003}' in chunk.data
    assert chunk.usage == Usage(7, 2)
    assert chunk.has_content
    assert chunk.finish_reason == "stop"


async def test_stream_carries_our_id_and_model_and_ends_in_one_usage_frame(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(delta(role="assistant"), delta("Hel"), delta("lo"), delta(finish="stop"), usage()))
    chunks = await cloud.ask(STREAMING)
    documents = frames(chunks)
    assert {(d["id"], d["object"], d["created"], d["model"]) for d in documents} == {
        ("chatcmpl-r1", "chat.completion.chunk", 1_700_000_000, "demo")
    }
    assert text(chunks) == "Hello"
    assert [d["usage"] for d in documents if "usage" in d] == [
        {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "cost_usd": 0.00003}
    ]
    assert documents[-1]["choices"] == []
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(7, 2)]
    assert chunks[-1].finish_reason == "stop"


async def test_stream_has_no_usage_frame_unless_asked_for(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(delta("Hello", finish="stop") | {"usage": usage()["usage"]}))
    chunks = await cloud.ask(make_call(stream=True, include_usage=False))
    assert all("usage" not in document for document in frames(chunks))
    assert chunks[-1].usage == Usage(7, 2)


@pytest.mark.parametrize(
    "empty",
    [
        b": keep-alive\n\n",
        event(delta(role="assistant")),
        event(delta("")),
        event(delta(None, tool_calls=[])),
        event(usage(7, 0)),
        event({"choices": [], "prompt_filter_results": []}),
    ],
    ids=["comment", "role", "empty text", "no tool calls", "usage", "no choices"],
)
async def test_only_generated_text_counts_as_content(upstream: Upstream, cloud: Cloud, empty: bytes) -> None:
    go_on = asyncio.Event()

    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + part(empty) + part(empty))
        await writer.drain()
        await go_on.wait()
        writer.write(part(event(delta("Hello", finish="stop"))) + part(b"data: [DONE]\n\n") + STREAM_END)

    upstream.reply = reply
    seen = []
    stream = cloud.backend().open(STREAMING)
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    async for chunk in stream:
        seen.append((chunk.has_content, chunk.output_tokens))
    assert sum(has for has, _ in seen) == 1
    assert all(tokens == 0 for has, tokens in seen[: seen.index((True, 1))])


@pytest.mark.parametrize(
    "piece",
    [
        {"content": "x"},
        {"reasoning_content": "x"},
        {"reasoning": "x"},
        {"refusal": "x"},
        {"tool_calls": [{"index": 0, **TOOL_CALL}]},
    ],
    ids=lambda piece: next(iter(piece)),
)
async def test_every_kind_of_content_is_passed_on_and_counted(
    upstream: Upstream, cloud: Cloud, piece: dict[str, Any]
) -> None:
    upstream.sends(sse(delta(**piece), delta(finish="stop"), usage()))
    chunks = await cloud.ask(STREAMING)
    assert frames(chunks)[0]["choices"][0]["delta"] == piece
    assert any(chunk.has_content for chunk in chunks)


async def test_logprobs_and_several_choices_are_kept(upstream: Upstream, cloud: Cloud) -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}
    choices = [
        {"index": 1, "delta": {"content": "b"}, "logprobs": logprobs, "finish_reason": None},
        {"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": "length"},
    ]
    upstream.sends(sse({"choices": choices}, usage()))
    body = {"messages": [], "n": 2}
    documents = frames(await cloud.ask(make_call(stream=True, body=body)))
    assert documents[0]["choices"] == choices
    assert documents[1]["choices"] == [{"index": 1, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


async def test_text_completion_streams_and_answers(upstream: Upstream, cloud: Cloud) -> None:
    chunk = {"object": "text_completion", "choices": [{"index": 0, "text": "once", "finish_reason": None}]}
    upstream.sends(sse(chunk, usage()))
    call = make_call(kind=Kind.COMPLETION, body={"prompt": "say"}, stream=True)
    documents = frames(await cloud.ask(call))
    assert documents[0]["id"] == "cmpl-r1"
    assert [c["text"] for d in documents for c in d["choices"]] == ["once", ""]
    upstream.sends(
        http({"choices": [{"index": 0, "text": "once", "finish_reason": "stop"}], "usage": usage()["usage"]})
    )
    document = await cloud.document(make_call(kind=Kind.COMPLETION, body={"prompt": "say"}))
    assert document["object"] == "text_completion"
    assert document["choices"] == [{"index": 0, "text": "once", "logprobs": None, "finish_reason": "stop"}]
    assert upstream.received[-1].path == "/v1/completions"


async def test_stream_answered_to_a_plain_call_becomes_one_document(upstream: Upstream, cloud: Cloud) -> None:
    calls = [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}]
    more = [{"index": 0, "function": {"arguments": '{"at": 1}'}}]
    upstream.sends(
        sse(delta("Hel", role="assistant"), delta("lo"), delta(tool_calls=calls), delta(tool_calls=more), usage())
    )
    (chunk,) = await cloud.ask(make_call())
    document = json.loads(chunk.data)
    assert document["object"] == "chat.completion"
    assert document["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello", "tool_calls": [TOOL_CALL]},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert chunk.has_content
    assert document["usage"]["prompt_tokens"] == 7


async def test_whole_answer_in_one_event_is_read(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(completion()))
    assert (await cloud.document())["choices"][0]["message"]["content"] == "Hello there"


async def test_responses_events_become_a_document_or_a_stream(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(*RESPONSES, done=False))
    document = await cloud.document()
    assert document["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert document["usage"]["total_tokens"] == 9
    chunks = await cloud.ask(STREAMING)
    assert text(chunks) == "Hello"
    assert chunks[-1].usage == Usage(7, 2)


async def test_responses_document_keeps_its_tool_calls(upstream: Upstream, cloud: Cloud) -> None:
    item = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"at": 1}'}
    upstream.sends(http({"object": "response", "status": "completed", "output": [item], "usage": None}))
    choice = (await cloud.document())["choices"][0]
    assert choice["message"]["tool_calls"] == [TOOL_CALL]
    assert choice["finish_reason"] == "tool_calls"


async def test_document_answered_to_a_stream_becomes_frames(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(completion()))
    chunks = await cloud.ask(STREAMING)
    assert text(chunks) == "Hello there"
    assert any(chunk.has_content for chunk in chunks)
    assert frames(chunks)[0]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1].usage == Usage(7, 2)


async def test_wrong_content_type_is_no_obstacle(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(http(completion(), content_type="text/html"))
    assert (await cloud.document())["choices"][0]["message"]["content"] == "Hello there"


async def test_document_with_a_byte_order_mark_and_no_finish_reason_is_whole(upstream: Upstream, cloud: Cloud) -> None:
    answer = completion()
    answer["choices"][0]["finish_reason"] = None
    upstream.sends(http(b"\xef\xbb\xbf" + json.dumps(answer).encode()))
    (chunk,) = await cloud.ask(make_call())
    assert chunk.finish_reason == "stop"
    assert json.loads(chunk.data)["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
async def test_legal_framing_split_in_the_middle_of_characters_is_read(
    upstream: Upstream, cloud: Cloud, end: bytes
) -> None:
    events = json.dumps(delta("grüße 🙂", finish="stop"), ensure_ascii=False).encode()
    whole = end.join([b"\xef\xbb\xbf: hello", b"data:" + events, b"", b"data: [DONE]", b"", b"data: x", b"", b""])
    upstream.sends(STREAM_HEAD, *[part(whole[i : i + 1]) for i in range(len(whole))], STREAM_END)
    assert text(await cloud.ask(STREAMING)) == "grüße 🙂"


@pytest.mark.parametrize(
    ("said", "meant"),
    [(None, "stop"), ("", "stop"), ("end_turn", "stop"), ("MAX_TOKENS", "length"), ("tool_use", "tool_calls")],
)
async def test_finish_reason_is_one_of_openais(upstream: Upstream, cloud: Cloud, said: str | None, meant: str) -> None:
    upstream.sends(sse(delta("Hello"), delta(finish=said), usage()))
    chunks = await cloud.ask(STREAMING)
    reasons = [c["finish_reason"] for d in frames(chunks) for c in d["choices"]]
    assert [reason for reason in reasons if reason] == [meant]
    assert chunks[-1].finish_reason == meant


async def test_end_without_done_is_fine_once_every_choice_has_ended(upstream: Upstream, cloud: Cloud) -> None:
    upstream.sends(sse(delta("Hello"), delta(finish="stop"), usage(), done=False))
    assert text(await cloud.ask(STREAMING)) == "Hello"


async def test_arguments_sent_as_an_object_become_text(upstream: Upstream, cloud: Cloud) -> None:
    call = {"id": "call_1", "function": {"name": "look", "arguments": {"at": 1}}}
    upstream.sends(sse(delta(tool_calls=[call]), usage()))
    sent = frames(await cloud.ask(STREAMING))[0]["choices"][0]["delta"]["tool_calls"][0]
    assert sent["index"] == 0
    assert json.loads(sent["function"]["arguments"]) == {"at": 1}


async def test_answer_without_choices_is_refused(upstream: Upstream, cloud: Cloud) -> None:
    for broken in (http({"object": "chat.completion"}), http({"choices": []}), sse(), sse({"object": "thing"})):
        upstream.sends(broken)
        with pytest.raises(UpstreamTruncated):
            await cloud.ask(make_call())
        with pytest.raises(UpstreamTruncated):
            await cloud.ask(STREAMING)
