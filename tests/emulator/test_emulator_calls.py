"""The emulator behaves as a provider should: the stock SDK is the client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from node.emulator import Emulator, ErrorShape
from tests.emulator.emulator_client import KEY, ask, chat, fast, streaming

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    },
}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(fast(log_prompts=True)) as running:
        yield running


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=emulator.base_url, api_key=KEY, max_retries=0) as sdk:
        yield sdk


async def test_answer_says_that_it_is_emulated(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="gpt-4.1", messages=HELLO)
    assert "Emulated answer" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "gpt-4.1"


async def test_stream_gives_the_words_and_usage_of_a_whole_answer(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, seed=3)
    stream = await client.chat.completions.create(
        model="gpt-4.1", messages=HELLO, seed=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("Emulated answer — no model wrote this")
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(chunks) - 3  # all but role, finish and usage


async def test_stream_has_no_usage_unless_asked(emulator: Emulator) -> None:
    heard = await ask(emulator, chat(stream=True))
    assert all("usage" not in event for event in heard.events())
    assert heard.body.endswith(b"data: [DONE]\n\n")


async def test_max_tokens_is_honoured(client: AsyncOpenAI) -> None:
    for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        answer = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, extra_body=limit)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        assert answer.choices[0].finish_reason == "length"


async def test_stop_ends_the_answer_before_the_stop_text(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, stop=[" model"])
    assert answer.choices[0].message.content == "Emulated answer — no"


async def test_n_gives_that_many_choices_and_bills_them_all(client: AsyncOpenAI, emulator: Emulator) -> None:
    answer = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, n=3, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert emulator.bill.records[-1]["completion_tokens"] == 12
    events = (await ask(emulator, streaming(n=3, max_tokens=4))).events()
    for index in range(3):
        own = [event["choices"][0] for event in events if event["choices"] and event["choices"][0]["index"] == index]
        assert sum(bool(choice["delta"].get("content")) for choice in own) == 4
        assert own[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_required_tool_is_called_with_arguments_of_its_schema(client: AsyncOpenAI, choice: Any) -> None:
    answer = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, tools=[WEATHER], tool_choice=choice)
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "weather"
    arguments = json.loads(calls[0].function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("C", "F")


async def test_streamed_tool_call_adds_up_to_json(emulator: Emulator) -> None:
    heard = await ask(emulator, streaming(tools=[WEATHER], tool_choice="required"))
    calls = [
        call
        for event in heard.events()
        if event["choices"]
        for call in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert calls[0]["function"]["name"] == "weather"
    assert "id" not in calls[1]
    assert set(json.loads("".join(call["function"]["arguments"] for call in calls))) == {"city", "unit"}


async def test_optional_tools_are_answered_in_words(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, tools=[WEATHER])
    assert answer.choices[0].message.content


async def test_json_is_answered_when_asked_for(client: AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 18, "maximum": 19},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1},
        },
        "$defs": {"tag": {"enum": ["a", "b"]}},
    }
    wanted: list[Any] = [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    ]
    loose, strict = [
        json.loads(
            (await client.chat.completions.create(model="gpt-4.1", messages=HELLO, response_format=each))
            .choices[0]
            .message.content
            or ""
        )
        for each in wanted
    ]
    assert loose["emulated"] is True
    assert strict["age"] in (18, 19)
    assert set(strict["tags"]) <= {"a", "b"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": "low"},
        {"type": "integer", "minimum": 9, "maximum": 1},
        {"anyOf": {"a": 1}},
        {"properties": {name: {"$ref": "#"} for name in "abcdefghij"}},
        {"type": "array", "minItems": 10**9, "items": {"$ref": "#/nowhere"}},
    ],
)
async def test_a_schema_without_sense_or_end_still_gets_json(client: AsyncOpenAI, schema: dict[str, Any]) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema}}
    answer = await client.chat.completions.create(
        model="gpt-4.1", messages=HELLO, response_format=wanted, max_tokens=100
    )
    assert answer.choices[0].message.content


async def test_completions_answer_each_prompt(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="gpt-4.1", prompt=["one", "two"], max_tokens=3)
    assert [choice.text for choice in answer.choices] == ["Emulated answer —"] * 2
    stream = await client.completions.create(model="gpt-4.1", prompt="one", max_tokens=3, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]) == "Emulated answer —"


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [
        "gpt-4.1",
        "claude-sonnet-4.5",
        "gpt-4o-mini",
        "gemini-2.5-flash",
        "deepseek-v3.2",
    ]


async def test_wrong_key_unknown_model_and_bad_bodies_are_refused(emulator: Emulator) -> None:
    assert (await ask(emulator, chat(), key="other")).status == 401
    assert (await ask(emulator, chat(), key=None)).status == 401
    assert (await ask(emulator, chat(model="gpt-9"))).status == 404
    for bad in (b"{", b"[]", b"[" * 50_000, chat(messages=[]), chat(max_tokens=0), chat(n="2"), chat(stream=1)):
        assert (await ask(emulator, bad)).status == 400
    assert emulator.bill.records == []
    assert len(emulator.log.records) == 10


async def test_sdk_understands_the_errors(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="gpt-9", messages=HELLO)


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        (ErrorShape.TYPED, {"type", "message"}),
        (ErrorShape.CODED, {"code", "type", "request_id"}),
        (ErrorShape.OPENAI, {"message", "type", "param", "code"}),
    ],
)
async def test_error_bodies_come_in_each_known_shape(shape: ErrorShape, keys: set[str]) -> None:
    async with Emulator(fast(error_shape=shape)) as emulator:
        assert set((await ask(emulator, chat(model="gpt-9"))).json()["error"]) == keys


async def test_requests_per_minute_are_limited_and_announced() -> None:
    async with Emulator(fast(requests_per_minute=2, error_shape=ErrorShape.CODED)) as emulator:
        heard = [await ask(emulator, chat(max_tokens=1)) for _ in range(3)]
    assert [each.status for each in heard] == [200, 200, 429]
    assert [each.headers["x-ratelimit-remaining"] for each in heard] == ["1", "0", "0"]
    assert heard[2].headers["x-ratelimit-limit"] == "2"
    assert 1 <= int(heard[2].headers["retry-after"]) <= 60
    assert heard[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert heard[2].json()["error"]["retry_after"] > 0


async def test_calls_at_once_are_limited() -> None:
    async with (
        Emulator(fast(max_concurrent=1, pace_s=0.05)) as emulator,
        AsyncOpenAI(base_url=emulator.base_url, api_key=KEY, max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, stream=True)
        await anext(aiter(stream))
        assert (await ask(emulator, chat())).status == 429
        await stream.close()


async def test_same_seed_and_requests_give_the_same_answers_and_times() -> None:
    runs = []
    for seed in (7, 7, 8):
        async with Emulator(fast(seed=seed)) as emulator:
            bodies = [await ask(emulator, chat(messages=[{"role": "user", "content": str(i % 3)}])) for i in range(6)]
            runs.append([(body.json()["choices"], body.json()["latency_ms"]) for body in bodies])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


async def test_a_repeated_request_gets_another_answer_unless_it_is_seeded(emulator: Emulator) -> None:
    loose = {(await ask(emulator, chat())).json()["choices"][0]["message"]["content"] for _ in range(4)}
    fixed = {(await ask(emulator, chat(temperature=0))).json()["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(loose) > 1
    assert len(fixed) == 1
