"""The whole node as a user runs it: `spillway serve` with a real engine, the OpenAI SDK over a real socket."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from node.emulator.config import EmulatorConfig
from node.emulator.server import Emulator
from tests.docs.reader import Reader
from tests.docs.scenes import ENGINE_PAGES, in_place_of

pytestmark = pytest.mark.engine

_PROVIDER_KEY = "test-provider-key"
_ADMIN_KEY = "sa-the-key-of-the-tests"
_READY_WITHIN_S = 240


@dataclass
class RunningNode:
    url: str
    admin_url: str
    process: subprocess.Popen[bytes]
    emulator: Emulator
    log: Path

    def sdk(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def async_sdk(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "node.cli", "serve", "--config", str(config)],
            stdout=output,
            stderr=output,
            env={**os.environ, "TEST_PROVIDER_KEY": _PROVIDER_KEY, "SPILLWAY_ADMIN_KEY": _ADMIN_KEY},
            start_new_session=True,  # so that a test can signal its whole process group
        )


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningNode]:
    folder = tmp_path_factory.mktemp("node")
    port, admin_port = _free_port(), _free_port()
    async with Emulator(
        EmulatorConfig(api_key=_PROVIDER_KEY, log_prompts=True, ttft_median_s=0.05, pace_s=0.002)
    ) as emulator:
        config = folder / "spillway.yaml"
        config.write_text(
            f"""
listen: {{port: {port}}}
admin: {{port: {admin_port}}}
engine: {{demo: {{max_num_seqs: 4}}}}
providers:
  holysheep: {{base_url: "{emulator.base_url}", api_key_env: TEST_PROVIDER_KEY, assumed_ttft_s: 0.5}}
"""
        )
        log = folder / "node.log"
        process = _start(config, log)
        running = RunningNode(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", process, emulator, log)
        try:
            await _until_ready(running)
            yield running
        finally:
            process.kill() if process.poll() is None else None
            process.wait()


async def _until_ready(node: RunningNode) -> None:
    give_up = time.monotonic() + _READY_WITHIN_S
    async with httpx.AsyncClient() as client:
        while time.monotonic() < give_up:
            assert node.process.poll() is None, node.log.read_text()[-3000:]
            try:
                if (await client.get(f"{node.url}/readyz")).status_code == 200:
                    return
            except httpx.ConnectError:
                pass
            await asyncio.sleep(0.5)
    raise AssertionError(f"not ready: {node.log.read_text()[-3000:]}")


async def _stats(node: RunningNode) -> Any:
    async with httpx.AsyncClient() as client:
        return (
            await client.get(f"{node.admin_url}/admin/stats", headers={"authorization": f"Bearer {_ADMIN_KEY}"})
        ).json()


async def _raw(node: RunningNode, body: dict[str, Any], **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.post(f"{node.url}/v1/chat/completions", json=body, headers=headers)


def _chat(text: str = "What is Spillway?", **more: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], **more}


async def test_the_stock_sdk_gets_its_answer_from_the_local_engine(node: RunningNode) -> None:
    answer = await asyncio.to_thread(
        lambda: node.sdk().chat.completions.with_raw_response.create(
            model="demo", messages=[{"role": "user", "content": "What is Spillway?"}], temperature=0, max_tokens=60
        )
    )
    assert answer.headers["x-spillway-backend"] == "local"
    completion = answer.parse()
    assert completion.model == "demo"
    assert "Spillway" in (completion.choices[0].message.content or "")
    assert completion.usage is not None
    assert completion.usage.model_extra == {"cost_usd": 0.0} or completion.usage.cost_usd == 0.0  # type: ignore[attr-defined]


async def test_the_async_sdk_streams_and_gets_usage_when_it_asks(node: RunningNode) -> None:
    stream = await node.async_sdk().chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Hello!"}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=32,
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_completions_endpoint_answers(node: RunningNode) -> None:
    answer = await node.async_sdk().completions.create(model="demo", prompt="Spillway is", max_tokens=8)
    assert answer.choices[0].text
    assert answer.id.startswith("cmpl-")


async def test_a_tool_call_is_made_when_one_is_required(node: RunningNode) -> None:
    tool: Any = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    answer = await node.async_sdk().chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[tool],
        tool_choice="required",
        extra_body={"spillway": {"require_local": True}},
        max_tokens=100,
    )
    assert answer.choices[0].message.tool_calls
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"  # type: ignore[union-attr]


async def test_a_burst_spills_and_pinned_requests_never_leave(node: RunningNode) -> None:
    async def one(number: int) -> tuple[bool, httpx.Response]:
        pinned = number % 5 == 0
        marker = f"PINNEDSECRET{number}" if pinned else f"ordinary {number}"
        body = _chat(
            f"Tell me about {marker}",
            max_tokens=200,
            min_tokens=0,
            spillway={"require_local": True} if pinned else {"ttft_budget_ms": 800},
        )
        del body["min_tokens"]
        return pinned, await _raw(node, body)

    answers = await asyncio.gather(*(one(number) for number in range(100)))
    assert [answer.status_code for _, answer in answers] == [200] * 100
    assert {answer.headers["x-spillway-backend"] for pinned, answer in answers if pinned} == {"local"}
    assert "holysheep" in {answer.headers["x-spillway-backend"] for pinned, answer in answers if not pinned}
    assert not any("PINNEDSECRET" in str(record) for record in node.emulator.log.records)


async def test_spend_equals_the_providers_own_bill(node: RunningNode) -> None:
    stats = await _stats(node)
    assert round(stats["total"]["spent_usd"] * 10**9) == node.emulator.billed_nano_usd
    assert stats["total"]["saved_usd"] > 0


async def test_identical_deterministic_requests_are_answered_from_the_cache(node: RunningNode) -> None:
    body = _chat("Hello, cache!", temperature=0, seed=7, max_tokens=16, spillway={"require_local": True})
    first, second = await _raw(node, body), await _raw(node, body)
    assert first.headers["x-spillway-backend"] == "local"
    assert second.headers["x-spillway-backend"] == "cache"
    assert second.headers["x-spillway-reason"] == "cache_hit"
    assert second.json()["choices"] == first.json()["choices"]
    assert second.json()["id"] != first.json()["id"]
    assert second.json()["usage"]["cost_usd"] == 0.0


@pytest.mark.parametrize("stream", [True, False])
async def test_row_38_client_that_hangs_up_frees_the_engine_long_before_the_answer_would_end(
    node: RunningNode, stream: bool
) -> None:
    pinned = {"require_local": True}
    began = time.monotonic()
    hundred = await _raw(node, _chat("Count to a hundred", max_tokens=100, ignore_eos=True, spillway=pinned))
    assert hundred.json()["usage"]["completion_tokens"] == 100
    # A second on a machine that has nothing else to do; of the 3000 tokens, less than a fifth.
    within_s = max(1.0, 5 * (time.monotonic() - began))
    body = _chat("Count for ever", stream=stream, max_tokens=3000, ignore_eos=True, spillway=pinned)
    async with httpx.AsyncClient(timeout=30) as client:
        url = f"{node.url}/v1/chat/completions"
        closed = (await _stats(node))["by_ending"].get("client_closed", 0)
        if stream:
            async with client.stream("POST", url, json=body) as answer:
                assert answer.headers["x-spillway-backend"] == "local"
                await anext(answer.aiter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(url, json=body, timeout=httpx.Timeout(10, read=0.5))
        give_up = time.monotonic() + within_s
        while time.monotonic() < give_up:
            stats = await _stats(node)
            engine = stats["engines"]["demo"]
            if engine["in_flight"] == 0 and engine["running"] == 0:
                assert stats["by_ending"]["client_closed"] == closed + 1
                return
            await asyncio.sleep(0.02)
    raise AssertionError(f"still running: {engine}")


async def test_a_prompt_beyond_the_context_is_refused_when_pinned(node: RunningNode) -> None:
    answer = await _raw(node, _chat("word " * 8000, spillway={"require_local": True}))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_more_output_than_the_engines_context_goes_to_the_cloud_or_is_the_clients_mistake(
    node: RunningNode,
) -> None:
    assert (await _raw(node, _chat(max_tokens=5000))).headers["x-spillway-reason"] == "cloud_only_length"
    sent = len(node.emulator.log.records)
    answer = await _raw(node, _chat(max_tokens=5000, spillway={"require_local": True}))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert len(node.emulator.log.records) == sent
    assert (await _raw(node, _chat(max_tokens=4090))).headers["x-spillway-backend"] == "local"


async def test_a_pinned_request_that_only_the_cloud_could_serve_is_refused(node: RunningNode) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {"model": "demo", "messages": [{"role": "user", "content": [image]}], "spillway": {"require_local": True}}
    answer = await _raw(node, body)
    assert answer.status_code in (400, 403)
    assert answer.headers["x-should-retry"] == "false"


async def test_unknown_model_path_and_method_get_openai_errors(node: RunningNode) -> None:
    async with httpx.AsyncClient() as client:
        unknown = await _raw(node, {**_chat(), "model": "nope"})
        path = await client.get(f"{node.url}/v1/nope")
        method = await client.get(f"{node.url}/v1/chat/completions")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert (path.status_code, path.json()["error"]["type"]) == (404, "invalid_request_error")
    assert (method.status_code, method.json()["error"]["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": [1, 2, 1_000_000]}),
        ("completions", {"prompt": [-1]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"1000000": 1}}),
    ],
)
async def test_token_ids_beyond_the_vocabulary_are_refused(node: RunningNode, path: str, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(f"{node.url}/v1/{path}", json={"model": "demo", **body})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_schemathesis_in_negative_mode_finds_no_server_error(node: RunningNode) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{node.url}/openapi.json", "--mode", "negative", "--checks", "not_a_server_error"),
        *("--max-examples", "40", "--seed", "1", "--no-color"),
    ]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, cwd=node.log.parent)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "No issues found" in done.stdout


async def test_metrics_are_prometheus_text(node: RunningNode) -> None:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{node.url}/metrics")).text
    assert 'spillway_requests_total{backend="local"' in text
    found = {name: float(value) for name, value in re.findall(r"^(vllm:\w+)\{.*\} (\S+)$", text, re.MULTILINE)}
    assert found["vllm:generation_tokens_total"] > 0
    assert found["vllm:prompt_tokens_total"] > 0
    assert found["vllm:prefix_cache_queries_total"] > 0
    assert found["vllm:request_success_total"] > 0
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"} <= found.keys()


@pytest.mark.parametrize("page", ENGINE_PAGES)
async def test_whoever_does_what_a_page_says_gets_what_it_says(node: RunningNode, page: str, tmp_path: Path) -> None:
    port, admin_port = (int(url.rpartition(":")[2]) for url in (node.url, node.admin_url))
    reader = Reader(page, tmp_path, instead=in_place_of(port, admin_port), environ={"SPILLWAY_ADMIN_KEY": _ADMIN_KEY})
    await asyncio.to_thread(reader.follow)


async def test_row_68_ctrl_c_lets_a_stream_end_and_leaves_no_process_behind(node: RunningNode) -> None:
    """A terminal signals the whole process group, and so do some supervisors."""
    children = psutil.Process(node.process.pid).children(recursive=True)
    assert children
    body = _chat("Count for ever", stream=True, max_tokens=600, ignore_eos=True, spillway={"require_local": True})
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{node.url}/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        os.killpg(node.process.pid, signal.SIGINT)
        text = "\n".join([line async for line in lines])
    assert '"finish_reason":"length"' in text
    assert text.rstrip().endswith("data: [DONE]")
    assert await asyncio.to_thread(node.process.wait, 120) == 0
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


async def test_row_68_sigterm_ends_a_starting_node_and_leaves_no_process_behind(
    node: RunningNode, tmp_path: Path
) -> None:
    config = node.log.with_name("spillway.yaml")
    process = _start(config, tmp_path / "node.log")
    try:
        give_up = time.monotonic() + _READY_WITHIN_S
        children: list[psutil.Process] = []
        while not children and time.monotonic() < give_up:
            await asyncio.sleep(0.2)
            children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.killpg(process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 120) == 0
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
    finally:
        process.kill() if process.poll() is None else None
        process.wait()
