"""The local engine with the shipped model: one start for all tests here, which end by killing it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from node.backend import Call, Chunk, Kind
from node.catalogue import LocalModel
from node.errors import ContextLengthExceeded, EngineUnavailable, InvalidRequest, SettingsError
from node.local import plain
from node.local.backend import LocalBackend
from node.local.engine import LocalEngine
from node.local.processes import EngineProcess, descendants
from node.routing.values import EngineLoad, EngineState

pytestmark = pytest.mark.engine

ASK = [{"role": "user", "content": "What is Spillway?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string", "enum": ["queue", "price"]}},
            "required": ["what"],
            "additionalProperties": False,
        },
    },
}
_numbers = itertools.count()


def pollers() -> int:
    """How many event queues this process has open: those of ZeroMQ's threads beside asyncio's own."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += str(each.readlink()) == "anon_inode:[eventpoll]"
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pollers_before() -> int:
    return pollers()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(demo_model: LocalModel, pollers_before: int) -> AsyncIterator[LocalEngine]:
    states: list[EngineState] = []
    entered: list[str] = []
    engine = LocalEngine("demo", demo_model, on_state=states.append, on_entered=entered.append)
    with pytest.raises(EngineUnavailable):
        engine.serving()
    await engine.start()
    assert states == [EngineState.READY]
    yield engine
    await engine.stop()


@pytest.fixture(scope="module")
def backend(engine: LocalEngine) -> LocalBackend:
    return LocalBackend(engine)


def chat(*, stream: bool = True, cap: int = 24, **body: Any) -> Call:
    return _call(Kind.CHAT, stream, cap, {"messages": ASK, "temperature": 0} | body)


def completion(*, stream: bool = True, cap: int = 24, **body: Any) -> Call:
    return _call(Kind.COMPLETION, stream, cap, {"prompt": "Spillway is", "temperature": 0} | body)


def _call(kind: Kind, stream: bool, cap: int, body: dict[str, Any]) -> Call:
    return Call(
        request_id=f"r{next(_numbers)}",
        kind=kind,
        model="demo",
        body=body,
        stream=stream,
        include_usage=True,
        max_output_tokens=cap,
        created_s=1234,
        tenant="t",
    )


async def gather(source: AsyncGenerator[Chunk, None]) -> list[Chunk]:
    async with aclosing(source):
        chunks = [chunk async for chunk in source]
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    return chunks


def frames(chunks: list[Chunk]) -> list[dict[str, Any]]:
    events = b"".join(chunk.data for chunk in chunks).split(b"\n\n")
    assert events.pop() == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def text_of(chunks: list[Chunk], index: int = 0) -> str:
    choices = [choice for frame in frames(chunks) for choice in frame["choices"] if choice["index"] == index]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


async def whole(backend: LocalBackend, call: Call) -> dict[str, Any]:
    (chunk,) = await gather(backend.open(call))
    answer: dict[str, Any] = json.loads(chunk.data)
    return answer


def named_sockets(process: EngineProcess) -> list[Path]:
    """Those that it has under a name in the file system."""
    found = process.find()
    assert found is not None
    return [Path(each.laddr) for each in found.net_connections("unix") if each.laddr.startswith("/")]


async def eventually(condition: Callable[[], bool], within_s: float = 120.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - engine state is polled, as routing does
            await asyncio.sleep(0.005)


def meaning(chunks: list[Chunk], call: Call) -> dict[str, Any]:
    """What a client makes of the answer, however its text was cut into frames. Absent and null mean the same."""
    documents = frames(chunks) if call.stream else [json.loads(chunks[0].data)]
    text = ""
    merged: dict[str, Any] = {}
    for document in documents:
        for choice in document.pop("choices"):
            body = choice.pop("message", None) or choice.pop("delta", None) or {"content": choice.pop("text")}
            text += body.pop("content") or ""
            merged |= {key: value for key, value in (body | choice).items() if value is not None}
        merged |= {key: value for key, value in document.items() if value is not None}
    merged.pop("system_fingerprint", None)
    last = chunks[-1]
    facts = (last.usage, last.finish_reason, last.output_tokens, any(chunk.has_content for chunk in chunks))
    return merged | {"text": text, "facts": facts}


async def test_streamed_chat_is_text_then_usage(backend: LocalBackend) -> None:
    call = chat(cap=64)
    chunks = await gather(backend.open(call))
    assert "Spillway" in text_of(chunks)
    seen = frames(chunks)
    assert {frame["id"] for frame in seen} == {call.response_id}
    assert {(frame["created"], frame["model"]) for frame in seen} == {(1234, "demo")}
    assert seen[0]["choices"][0]["delta"]["role"] == "assistant"
    assert seen[-1]["usage"]["cost_usd"] == 0.0
    counts = [chunk.output_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert chunks[-1].usage is not None
    assert counts[-1] == chunks[-1].usage.completion_tokens
    assert chunks[-1].finish_reason == "stop"


async def test_whole_chat_says_the_same_as_the_stream(backend: LocalBackend) -> None:
    answer = await whole(backend, chat(stream=False))
    assert answer["choices"][0]["message"]["content"] == text_of(await gather(backend.open(chat())))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda stream: chat(stream=stream),
        lambda stream: chat(stream=stream, cap=1),
        lambda stream: chat(stream=stream, max_tokens=3),
        lambda stream: chat(stream=stream, max_completion_tokens=5, max_tokens=3),
        lambda stream: chat(stream=stream, stop=["GPU", "cloud"], cap=60),
        lambda stream: chat(stream=stream, temperature=1.3, top_p=0.9, top_k=50, seed=11),
        lambda stream: chat(stream=stream, presence_penalty=0.4, repetition_penalty=1.2, ignore_eos=True, cap=80),
        lambda stream: chat(stream=stream, messages=[{"role": "system", "content": "Grüße, 世界 🙂"}, *ASK]),
        lambda stream: chat(stream=stream, temperature=None, seed=5),
        lambda stream: completion(stream=stream),
        lambda stream: completion(stream=stream, max_tokens=4, stop="\n"),
        lambda stream: completion(stream=stream, prompt="🙂 é", temperature=1.5, seed=3, cap=40),
    ],
)
async def test_both_ways_of_serving_mean_the_same(
    engine: LocalEngine, make: Callable[[bool], Call], stream: bool
) -> None:
    call, again = make(stream), make(stream)
    again = replace(again, request_id=call.request_id)
    assert plain.fits_fast_path(call)
    with engine.work.entering("r", 1) as tally:
        fast = await gather(plain.answer(engine.serving(), call, tally))
    with engine.work.entering("r", 1) as tally:
        general = await gather(engine.serving().answer(again, tally))
    assert meaning(fast, call) == meaning(general, again)


async def test_required_tool_call_fits_its_schema(backend: LocalBackend) -> None:
    answer = await whole(backend, chat(stream=False, tools=[TOOL], tool_choice="required", cap=200))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "look_up"
    arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
    assert arguments["what"] in ("queue", "price")


async def test_streamed_tool_call_counts_as_content(backend: LocalBackend) -> None:
    chunks = await gather(backend.open(chat(tools=[TOOL], tool_choice="required", cap=200)))
    assert chunks[-1].finish_reason == "tool_calls"
    deltas = [choice["delta"] for frame in frames(chunks) for choice in frame["choices"]]
    assert any(delta.get("tool_calls") for delta in deltas)
    assert any(chunk.has_content for chunk in chunks)


async def test_json_schema_binds_the_answer(backend: LocalBackend) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "maxProperties": 1}
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema | {"additionalProperties": False}}}
    chunks = await gather(backend.open(chat(response_format=wanted, cap=200)))
    assert isinstance(json.loads(text_of(chunks))["ok"], bool)


async def test_logprobs_come_with_every_token(backend: LocalBackend) -> None:
    answer = await whole(backend, chat(stream=False, logprobs=True, top_logprobs=2, cap=4))
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    assert all(len(token["top_logprobs"]) >= 2 for token in content)


async def test_two_choices_are_both_counted(backend: LocalBackend) -> None:
    chunks = await gather(backend.open(chat(n=2, temperature=1.0, seed=4, ignore_eos=True, cap=6)))
    assert text_of(chunks, 0)
    assert text_of(chunks, 1)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


async def test_stop_string_ends_the_answer_before_it(backend: LocalBackend) -> None:
    whole_text = text_of(await gather(backend.open(chat(cap=60))))
    word = whole_text.split()[4]
    chunks = await gather(backend.open(chat(stop=word, cap=60)))
    assert chunks[-1].finish_reason == "stop"
    assert text_of(chunks) == whole_text[: whole_text.index(word)]


async def test_seed_repeats_an_answer(backend: LocalBackend) -> None:
    async def once(seed: int) -> str:
        return text_of(await gather(backend.open(chat(temperature=2.0, seed=seed, ignore_eos=True, cap=40))))

    assert await once(1) == await once(1)
    assert await once(1) != await once(2)


async def test_list_of_prompts_is_answered_in_one_response(backend: LocalBackend) -> None:
    answer = await whole(backend, completion(stream=False, prompt=["Spillway is", "The queue"], cap=5))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] <= 10


async def test_prompt_as_tokens_outside_the_vocabulary_is_refused(backend: LocalBackend) -> None:
    with pytest.raises(InvalidRequest):
        await gather(backend.open(completion(prompt=[1, 10_000_000])))


@pytest.mark.parametrize("more", [{}, {"logprobs": True}])
async def test_prompt_that_does_not_fit_is_named_so(backend: LocalBackend, more: dict[str, Any]) -> None:
    endless = [{"role": "user", "content": "queue " * 3000}]
    with pytest.raises(ContextLengthExceeded) as caught:
        await gather(backend.open(chat(messages=endless, **more)))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("more", [{}, {"logprobs": True}])
async def test_output_is_clipped_to_the_room_there_is(backend: LocalBackend, more: dict[str, Any]) -> None:
    with pytest.raises(ContextLengthExceeded):
        await gather(backend.open(chat(max_tokens=513, **more)))
    for call in (chat(ignore_eos=True, max_tokens=508, **more), chat(ignore_eos=True, cap=508, **more)):
        chunks = await gather(backend.open(call))
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 512


@pytest.mark.parametrize("more", [{"temperature": -1}, {"top_p": 7}, {"n": 2, "temperature": "hot"}])
async def test_impossible_sampling_is_the_clients_mistake(backend: LocalBackend, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await gather(backend.open(chat(**more)))
    assert caught.value.param == list(more)[-1]


async def test_request_body_is_left_as_it_was(backend: LocalBackend) -> None:
    messages = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    call = chat(messages=messages, tools=[TOOL], cap=4)
    before = json.dumps(call.body)
    await gather(backend.open(call))
    assert json.dumps(call.body) == before


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"n": 2, "temperature": 1}])
@pytest.mark.parametrize("stream", [True, False])
async def test_client_gone_stops_the_engine_within_a_few_steps(
    engine: LocalEngine, backend: LocalBackend, stream: bool, more: dict[str, Any]
) -> None:
    source = backend.open(chat(stream=stream, ignore_eos=True, cap=400, **more))
    if stream:
        async for chunk in source:
            if chunk.has_content:
                break
        await source.aclose()
    else:
        waiting = asyncio.ensure_future(anext(source))
        await eventually(lambda: engine.load(1).running > 0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (engine.in_flight, engine.load(0).queued_prefill_tokens) == (0, 0)
    steps = engine.steps
    await eventually(lambda: engine.load(0).running == 0)
    assert engine.steps - steps < 100, "of some 400; less than a second of them on a small machine"


async def test_warm_up_leaves_a_model_of_steps_and_nothing_else(engine: LocalEngine) -> None:
    load = engine.load(0)
    assert load.step is not None
    assert load.step.step_s(1, 0) > 0
    assert (load.running, load.waiting, load.queued_prefill_tokens) == (0, 0, 0)


async def test_model_of_steps_knows_sooner_or_later_that_prompts_take_time(
    engine: LocalEngine, backend: LocalBackend
) -> None:
    """After the warm-up where little else runs on the machine; after more prompts where their time was lost in it."""
    for number in range(100):
        step = engine.load(0).step
        if step is not None and step.step_s(1, 256) > step.step_s(1, 0):
            return
        await gather(backend.open(completion(prompt=[(number + token) % 500 for token in range(400)], cap=2)))
    pytest.fail(f"after {number + 1} prompts: {step}")


async def test_prompt_asked_again_comes_from_the_prefix_cache(backend: LocalBackend) -> None:
    # Longer than a block of the cache, which on CPU holds 128 tokens.
    text = "How long does a request wait in the queue before it leaves for the cloud? " * 12
    again = [{"role": "user", "content": text}]
    for stream, more in ((True, {}), (False, {}), (True, {"logprobs": True}), (False, {"logprobs": True})):
        first, second = [await gather(backend.open(chat(stream=stream, messages=again, **more))) for _ in range(2)]
        assert first[-1].usage is not None
        assert second[-1].usage is not None
        assert 0 < second[-1].usage.cached_tokens < second[-1].usage.prompt_tokens


@pytest.mark.parametrize("more", [{}, {"logprobs": 1}], ids=["lean path", "serving objects"])
@pytest.mark.parametrize("kind", Kind)
async def test_tenants_do_not_see_in_the_prefix_cache_what_others_have_asked(
    backend: LocalBackend, kind: Kind, more: dict[str, Any]
) -> None:
    text = f"{kind} {sorted(more)}: who has asked this before, and what did it cost them in the cloud? " * 12
    if kind is Kind.CHAT:
        call = chat(messages=[{"role": "user", "content": text}], **dict.fromkeys(more, True))
    else:
        call = completion(prompt=text, **more)

    async def cached_tokens(salt: str | None) -> int:
        asked = replace(call, request_id=f"salted{next(_numbers)}", cache_salt=salt)
        usage = (await gather(backend.open(asked)))[-1].usage
        assert usage is not None
        return usage.cached_tokens

    assert await cached_tokens("a" * 64) == 0
    assert await cached_tokens("b" * 64) == 0
    assert await cached_tokens(None) == 0
    assert await cached_tokens("a" * 64) > 0
    assert await cached_tokens("b" * 64) > 0


async def test_queued_prompt_tokens_are_those_the_engine_counts(engine: LocalEngine, backend: LocalBackend) -> None:
    seen: list[tuple[int, int]] = []

    def look() -> None:
        seen.append((engine.load(0).queued_prefill_tokens, engine.serving().llm.get_num_queued_tokens()))

    engine.work.on_step = look
    try:
        calls = [
            asyncio.ensure_future(gather(backend.open(chat(stream=stream, ignore_eos=True, cap=20, **more))))
            for stream in (True, False)
            for more in ({}, {"n": 2, "temperature": 1}, {"logprobs": True})
            for _ in range(4)
        ]
        await eventually(lambda: engine.in_flight > 0)
        calls[-1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    finally:
        engine.work.on_step = lambda: None
    assert any(whole for _, whole in seen)
    # Short prompts are computed in one step, so what is left of them is all of them.
    assert all(left <= whole for left, whole in seen)
    assert sum(left == whole for left, whole in seen) > 0.8 * len(seen)


async def test_load_follows_the_work(engine: LocalEngine, backend: LocalBackend) -> None:
    loads: list[EngineLoad] = []
    engine.work.stats.answered(100)
    engine.work.on_step = lambda: loads.append(engine.load(12))
    try:
        await asyncio.gather(*(gather(backend.open(chat(ignore_eos=True, cap=100))) for _ in range(12)))
    finally:
        engine.work.on_step = lambda: None
    assert max(load.running for load in loads) == 8
    assert max(load.waiting for load in loads) > 0
    assert any(load.sequences_per_s for load in loads)
    load = engine.load(3)
    assert (engine.in_flight, load.in_flight, load.queued_prefill_tokens) == (0, 3, 0)
    assert (load.state, load.max_sequences, load.context_tokens) == (EngineState.READY, 8, 512)
    assert load.step is not None
    assert 0 < load.step.step_s(8, 0) < 1
    assert load.kv_tokens is not None
    assert min(load.kv_tokens, load.max_batched_tokens) >= 512


async def test_argument_vllm_does_not_know_is_refused_at_start(demo_model: LocalModel) -> None:
    wrong = LocalEngine("demo", replace(demo_model, engine_args={"no_such_thing": 1}))
    with pytest.raises(SettingsError, match="no-such-thing"):
        await wrong.start()
    assert wrong.state is EngineState.DOWN


async def test_stop_during_start_leaves_nothing_behind(engine: LocalEngine, demo_model: LocalModel) -> None:
    before = descendants()
    second = LocalEngine("demo", demo_model)
    starting = asyncio.ensure_future(second.start())
    await eventually(lambda: bool(descendants() - before))
    await second.stop(grace_s=1.0)
    with pytest.raises(EngineUnavailable):
        await starting
    assert not descendants() - before
    assert engine.state is EngineState.READY


async def test_killed_engine_fails_its_calls_at_once_and_is_swept(engine: LocalEngine, backend: LocalBackend) -> None:
    processes = engine.processes
    assert processes
    sockets = [path for process in processes for path in named_sockets(process)]
    assert sockets
    calls = [
        asyncio.ensure_future(gather(backend.open(chat(stream=stream, ignore_eos=True, cap=400, **more))))
        for stream in (True, False)
        for more in ({}, {"logprobs": True})
    ]
    await eventually(lambda: engine.load(4).running == 4)
    core = min(processes, key=lambda process: process.start_ticks)
    os.kill(core.pid, signal.SIGKILL)
    for call in calls:
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(call, 60.0)
    assert engine.load(0).state is EngineState.DOWN
    with pytest.raises(EngineUnavailable):
        await gather(backend.open(chat()))
    await engine.stop()
    assert not [process for process in processes if process.find()]
    assert not [path for path in sockets if path.exists()]
    assert engine.in_flight == 0


async def test_engine_that_was_ended_gives_back_its_descriptors(engine: LocalEngine, pollers_before: int) -> None:
    assert engine.state is EngineState.DOWN, "the test before this one has killed it"
    gc.collect()  # the engine that was stopped while it started
    assert pollers() <= pollers_before
