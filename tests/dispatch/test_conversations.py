"""A conversation in the middle of a tool call goes on where it was."""

from __future__ import annotations

from typing import Any

import pytest

from node.backend import Chunk
from node.dispatch.conversations import Conversations
from node.money import Usage
from node.sse import encode, frame
from tests.dispatch.doubles import House, ScriptedBackend, call_for, named, read
from tests.dispatch.virtual_time import in_virtual_time


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def bringing(*call_ids: str) -> dict[str, Any]:
    """A request that brings the results of those calls."""
    calls = [{"id": each, "type": "function", "function": {"name": "f", "arguments": "{}"}} for each in call_ids]
    results = [{"role": "tool", "tool_call_id": each, "content": "42"} for each in call_ids]
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}, *results]}


def delta(call_id: str | None, arguments: str = "") -> dict[str, Any]:
    call = {"index": 0, "function": {"arguments": arguments}} | ({"id": call_id, "type": "function"} if call_id else {})
    return {"id": "chatcmpl-r", "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}


def streamed(*call_ids: str) -> bytes:
    return b"".join(frame(encode(each)) for call_id in call_ids for each in (delta(call_id), delta(None, '{"a":1}')))


def whole(*call_ids: str) -> bytes:
    return encode({"id": "chatcmpl-r", "choices": [{"index": 0, "message": bringing(*call_ids)["messages"][1]}]})


@pytest.mark.parametrize("data", [streamed("call-1", "call-2"), whole("call-1", "call-2")], ids=["stream", "document"])
def test_results_of_a_tool_call_go_to_whoever_called(data: bytes) -> None:
    known = Conversations(Clock())
    known.remember("t", "demo", data, "holysheep")
    assert known.backend_for("t", "demo", bringing("call-1", "call-2")) == "holysheep"
    assert known.backend_for("t", "demo", bringing("call-1")) == "holysheep"


def test_other_callers_other_models_and_unknown_calls_are_free_to_go_anywhere() -> None:
    known = Conversations(Clock())
    known.remember("t", "demo", streamed("call-1"), "local")
    assert known.backend_for("other", "demo", bringing("call-1")) is None
    assert known.backend_for("t", "other", bringing("call-1")) is None
    assert known.backend_for("t", "demo", bringing("call-2")) is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"prompt": "x"},
        {"messages": [*bringing("call-1")["messages"], {"role": "user", "content": "and now?"}]},
    ],
)
def test_conversation_that_is_past_its_tool_call_is_free_again(body: dict[str, Any]) -> None:
    known = Conversations(Clock())
    known.remember("t", "demo", streamed("call-1"), "local")
    assert known.backend_for("t", "demo", body) is None


def test_text_that_looks_like_a_tool_call_is_none() -> None:
    known = Conversations(Clock())
    text = streamed("call-1").decode()
    known.remember("t", "demo", frame(encode({"choices": [{"delta": {"content": text}}]})), "local")
    known.remember("t", "demo", encode({"choices": [{"message": {"content": text, "tool_calls": []}}]}), "local")
    assert len(known) == 0


@pytest.mark.parametrize("data", [b'"tool_calls":[{', b'data: {"choices":[{"delta":{"tool_calls":[{"id":7}]}}]}\n\n'])
def test_tool_call_that_cannot_be_read_is_passed_over(data: bytes) -> None:
    known = Conversations(Clock())
    known.remember("t", "demo", data, "local")
    assert len(known) == 0


def test_ten_minutes_later_it_is_forgotten() -> None:
    clock = Clock()
    known = Conversations(clock)
    known.remember("t", "demo", streamed("call-1"), "local")
    clock.now_s += 599
    assert known.backend_for("t", "demo", bringing("call-1")) == "local"
    clock.now_s += 1
    assert known.backend_for("t", "demo", bringing("call-1")) is None


def test_memory_is_bounded_and_keeps_the_latest() -> None:
    known = Conversations(Clock())
    for number in range(5000):
        known.remember("t", "demo", streamed(f"call-{number}"), "local")
    known.remember("t", "demo", streamed("x" * 10_000), "local")
    assert len(known) == 4096
    assert known.backend_for("t", "demo", bringing("call-4999")) == "local"
    assert known.backend_for("t", "demo", bringing("call-0")) is None


def calling(*call_ids: str) -> tuple[Chunk, ...]:
    usage = Usage(10, 1)
    return (
        Chunk(streamed(*call_ids), has_content=True, output_tokens=1),
        Chunk(b"", output_tokens=1, usage=usage, finish_reason="tool_calls"),
    )


@pytest.mark.parametrize("asks_for_tools", [True, False])
@in_virtual_time
async def test_tool_calls_are_noticed_in_the_answers_to_those_who_offered_tools(asks_for_tools: bool) -> None:
    home = House(None, [ScriptedBackend("cloud", calling("call-1"))])
    request = named("a")
    call = call_for(request)
    if asks_for_tools:
        call.body["tools"] = [{}]
    await read(await home.dispatcher.answer(call, request))
    stays_with = home.conversations.backend_for("t", "demo", bringing("call-1"))
    assert stays_with == ("cloud" if asks_for_tools else None)


@in_virtual_time
async def test_tool_call_is_known_before_the_client_has_it() -> None:
    home = House(None, [ScriptedBackend("cloud", calling("call-1"))])
    request = named("a")
    call = call_for(request)
    call.body["tools"] = [{}]
    answer = await home.dispatcher.answer(call, request)
    async for _ in answer:
        assert home.conversations.backend_for("t", "demo", bringing("call-1")) == "cloud"
    await answer.aclose()
