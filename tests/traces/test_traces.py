"""Traces as a collector gets them from a node that serves: who did what for how long, and never a text."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx

from node.emulator.server import Emulator
from node.emulator.switches import Switch
from tests.serve.node_process import PROVIDER_KEY, chat, emulated, running, until
from tests.traces.collector import Collector, collector

SERVER, CLIENT, INTERNAL = 2, 3, 1
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
FROM_THE_CLIENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=secret-of-the-client"}
SECRET = "the-words-of-the-prompt"


def traced(received: Collector, more: str = "") -> str:
    return f'traces: {{otlp_endpoint: "{received.url}"}}\n{more}'


def headers(emulator: Emulator) -> list[str]:
    """The names of those that the last call at the provider had."""
    names: list[str] = emulator.log.records[-1]["headers"]
    return names


async def until_has(received: Collector, *names: str) -> None:
    await until(lambda: set(names) <= {span.name for span in received.spans})


async def test_request_is_a_span_with_its_wait_its_attempt_and_its_stream_below(tmp_path: Path) -> None:
    async with (
        collector() as received,
        emulated() as emulator,
        running(emulator, tmp_path, traced(received)) as node,
        httpx.AsyncClient() as client,
    ):
        before_ns = time.time_ns()
        body = chat(SECRET, stream=True, stream_options={"include_usage": True}, max_tokens=8)
        url = f"{node.url}/v1/chat/completions"
        answer = await client.post(url, json=body, headers=FROM_THE_CLIENT)
        await until_has(received, "POST /v1/chat/completions", "queue", "stream")
        (root,) = received.named("POST /v1/chat/completions")
        assert (root.kind, root.trace_id, root.parent_id) == (SERVER, TRACE_ID, PARENT_ID)
        (attempt,) = [span for span in received.spans if span.kind == CLIENT]
        assert received.below(root) == ["queue", attempt.name]
        assert received.below(attempt) == ["stream"]
        assert {span.trace_id for span in received.spans} == {TRACE_ID}
        (stream,) = received.named("stream")
        assert before_ns <= root.start_ns <= attempt.start_ns < stream.start_ns <= stream.end_ns <= attempt.end_ns
        assert attempt.end_ns <= root.end_ns <= time.time_ns()
        served = answer.headers["x-spillway-model"]
        assert attempt.name == f"chat {served}"
        expected = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "holysheep",
            "gen_ai.request.model": served,
            "gen_ai.response.model": served,
            "spillway.reason": answer.headers["x-spillway-reason"],
        }
        assert expected.items() <= attempt.attributes.items()
        assert attempt.attributes["gen_ai.usage.output_tokens"] == 8
        assert attempt.attributes["gen_ai.usage.input_tokens"] > 0
        assert attempt.attributes["gen_ai.response.finish_reasons"] == ["length"]
        assert 0.0 < attempt.attributes["gen_ai.response.time_to_first_chunk"] < 60.0
        assert root.attributes["spillway.request_id"] == answer.headers["x-request-id"]
        assert root.attributes["http.response.status_code"] == 200
        assert root.attributes["spillway.backend"] == "holysheep"
        assert root.attributes["spillway.cost_usd"] > 0.0
        assert not any(span.failed for span in received.spans)
        assert received.resources[0]["service.name"] == "spillway"
        assert received.headers["Content-Type"] == "application/x-protobuf"
        sent = b"".join(received.bodies)
        answered = "".join(re.findall(r'"content":"([^"]+)"', answer.text))
        assert answered
        for text in (SECRET, answered, PROVIDER_KEY):
            assert text.encode() not in sent


async def test_attempt_that_failed_and_the_one_after_it_are_two_spans(tmp_path: Path) -> None:
    async with (
        collector() as received,
        emulated() as emulator,
        running(emulator, tmp_path, traced(received)) as node,
    ):
        emulator.switches.arm(Switch.ERROR_500, count=1)
        answer = await node.chat()
        assert answer.status_code == 200, answer.text
        await until_has(received, "POST /v1/chat/completions")
        first, second = sorted((span for span in received.spans if span.kind == CLIENT), key=lambda span: span.start_ns)
        assert (first.failed, second.failed) == (True, False)
        assert first.attributes["error.type"].startswith("upstream_")
        assert "gen_ai.usage.output_tokens" in second.attributes
        (root,) = received.named("POST /v1/chat/completions")
        assert root.attributes["spillway.attempts"] == 2
        assert not root.failed


async def test_refused_request_tells_its_code_and_not_what_it_said(tmp_path: Path) -> None:
    async with (
        collector() as received,
        emulated() as emulator,
        running(emulator, tmp_path, traced(received)) as node,
        httpx.AsyncClient() as client,
    ):
        answer = await client.post(f"{node.url}/v1/chat/completions", json=chat(model=SECRET))
        assert answer.status_code == 404
        await until_has(received, "POST /v1/chat/completions")
        (root,) = received.named("POST /v1/chat/completions")
        assert (root.attributes["http.response.status_code"], root.attributes["error.type"]) == (404, "model_not_found")
        assert not root.failed  # by OpenTelemetry's convention a client's mistake is no failure of the server's
        assert SECRET.encode() not in b"".join(received.bodies)


async def test_client_whose_trace_is_not_sampled_is_not_traced(tmp_path: Path) -> None:
    async with (
        collector() as received,
        emulated() as emulator,
        running(emulator, tmp_path, traced(received)) as node,
        httpx.AsyncClient() as client,
    ):
        unsampled = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
        await client.post(f"{node.url}/v1/chat/completions", json=chat(), headers=unsampled)
        await client.post(
            f"{node.url}/v1/completions", json={"model": "demo", "prompt": "x"}, headers={"traceparent": "?"}
        )
        await until_has(received, "POST /v1/completions")
        assert TRACE_ID not in {span.trace_id for span in received.spans}


async def test_traceparent_goes_to_a_provider_in_the_cloud_only_where_the_settings_say_so(tmp_path: Path) -> None:
    async with (
        collector() as received,
        emulated() as emulator,
        running(emulator, tmp_path, traced(received)) as node,
        httpx.AsyncClient() as client,
    ):
        await client.post(f"{node.url}/v1/chat/completions", json=chat(), headers=FROM_THE_CLIENT)
        assert not {"traceparent", "tracestate"} & set(headers(emulator))
        settings = node.config.read_text()
        node.config.write_text(settings.replace("api_key_env: TEST", "trace_context: true, api_key_env: TEST"))
        node.reload()
        await node.until_logged("reloaded")
        await client.post(f"{node.url}/v1/chat/completions", json=chat(), headers=FROM_THE_CLIENT)
        assert {"traceparent", "tracestate"} & set(headers(emulator)) == {"traceparent"}


async def test_collector_that_is_away_costs_no_request_and_holds_up_no_end(tmp_path: Path) -> None:
    nobody = 'traces: {otlp_endpoint: "http://127.0.0.1:9"}'
    async with emulated() as emulator, running(emulator, tmp_path, nobody) as node:
        for _ in range(20):
            assert (await node.chat()).status_code == 200
        await node.until_logged("does not take traces")
        began_s = time.monotonic()
        node.process.terminate()
        assert await node.ended() == 0
        assert time.monotonic() - began_s < 15.0
        assert node.log_text().count("does not take traces") == 1
        assert "Traceback" not in node.log_text()


async def test_what_is_left_is_sent_when_the_node_ends(tmp_path: Path) -> None:
    async with collector() as received, emulated() as emulator, running(emulator, tmp_path, traced(received)) as node:
        await node.chat()
        node.process.terminate()
        assert await node.ended() == 0
        assert received.named("POST /v1/chat/completions")
