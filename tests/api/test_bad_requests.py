"""What a client may send wrong, to the whole node over a raw socket: `spillway serve`, without an engine.

Every refusal is OpenAI-shaped, comes before anything is counted or leaves the machine, and the next request is served.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from node.emulator.config import EmulatorConfig
from node.emulator.server import Emulator

KEY = "sk-the-callers-key"
PROVIDER_KEY = "sk-the-providers-key"
ADMIN_KEY = "sa-the-key-of-the-operator"
MAX_BODY_BYTES = 2 * 1024 * 1024
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ANYTHING: Any = object()


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, whose connection has been closed."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningNode:
    port: int
    admin_port: int
    process: subprocess.Popen[bytes]
    emulator: Emulator
    log: Path

    async def exchange(self, *pieces: bytes, port: int | None = None) -> Answer:
        """Send, then read until the node closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        received = b""
        try:
            with suppress(ConnectionError):  # the node may have said its word before all is sent
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            with suppress(ConnectionError):
                while piece := await asyncio.wait_for(reader.read(65536), 10):
                    received += piece
        finally:
            writer.close()
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return Answer(int(status.split()[1]), headers, body)

    async def stats(self) -> dict[str, Any]:
        asked = request(b"", "/admin/stats", "GET", key=ADMIN_KEY).replace(b"host: x", b"host: localhost")
        answer = await self.exchange(asked, port=self.admin_port)
        stats: dict[str, Any] = answer.json()
        return stats

    async def counted(self) -> tuple[int, int]:
        """Requests the node has counted, and those that reached the provider. Nothing may be waiting."""
        stats = await self.stats()
        assert set(stats["queues"].values()) == {0}
        return sum(stats["by_ending"].values()), len(self.emulator.log.records)

    async def serves(self) -> None:
        assert (await self.exchange(request(chat()))).status == 200


def request(
    body: bytes, path: str = CHAT, method: str = "POST", *headers: str, content_type: str | None = "application/json",
    key: str | None = KEY, length: int | None = None,
) -> bytes:  # fmt: skip
    """A whole request, after which the connection is closed."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", *headers]
    if content_type is not None:
        lines.append(f"content-type: {content_type}")
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes) -> list[bytes]:
    """A request without its end, chunk by chunk."""
    head = request(b"", length=0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    return [head, *chunks]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "demo", "messages": HELLO, "max_tokens": 1, **fields}).encode()


def completion(prompt: Any) -> bytes:
    return json.dumps({"model": "demo", "prompt": prompt, "max_tokens": 1}).encode()


def error_of(answer: Answer, status: int, code: Any, param: Any = ANYTHING) -> str:
    """The message of a refusal that is all a refusal must be."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-should-retry"] == "false"
    document = answer.json()
    assert document.keys() == {"error"}
    error = document["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code, error
    assert param is ANYTHING or error["param"] == param, error
    told = (str(answer.headers) + answer.body.decode()).lower()
    for secret in (KEY, PROVIDER_KEY, ADMIN_KEY, "traceback", str(Path(__file__).parents[2]), "site-packages", ".py"):
        assert secret not in told
    message: str = error["message"]
    assert message
    return message


_SMALL_MODEL = """
name: small
summary: a model with a small context
cloud: [{provider: holysheep, model: deepseek-v3.2, context_tokens: 1000, capabilities: []}]
"""


def _serve(config: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "node.cli", "serve", "--config", str(config)],
            stdout=output,
            stderr=output,
            env={**os.environ, "TEST_PROVIDER_KEY": PROVIDER_KEY, "SPILLWAY_ADMIN_KEY": ADMIN_KEY},
        )


async def _start(folder: Path, emulator: Emulator, more: str) -> RunningNode:
    config, log = folder / "spillway.yaml", folder / "node.log"
    catalogue = folder / "models"
    catalogue.mkdir()
    (catalogue / "small.yaml").write_text(_SMALL_MODEL)
    config.write_text(
        f"""
listen: {{port: 0}}
cloud_only: true
catalogue: ["{catalogue}"]
models: [demo, small]
keys: [{{name: team, sha256: {hashlib.sha256(KEY.encode()).hexdigest()}}}]
providers:
  holysheep: {{base_url: "{emulator.base_url}", api_key_env: TEST_PROVIDER_KEY}}
api: {{max_body_bytes: {MAX_BODY_BYTES}, {more}}}
"""
    )
    process = _serve(config, log)
    give_up = time.monotonic() + 60
    while "Started server process" not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < give_up, said
        await asyncio.sleep(0.05)
    port, admin_port = (int(each.partition("/")[0]) for each in said.split("http://127.0.0.1:")[1:3])
    for each in (port, admin_port):  # the line comes a moment before uvicorn listens
        while not await _listens(each):
            assert time.monotonic() < give_up, log.read_text()
            await asyncio.sleep(0.05)
    return RunningNode(port, admin_port, process, emulator, log)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def _stop(node: RunningNode) -> None:
    node.process.terminate()
    assert await asyncio.to_thread(node.process.wait, 30) == 0
    said = node.log.read_text()
    for unwanted in ("Traceback", KEY, PROVIDER_KEY, ADMIN_KEY, "Hello"):
        assert unwanted not in said


@pytest.fixture(scope="module")
async def emulator() -> AsyncIterator[Emulator]:
    config = EmulatorConfig(api_key=PROVIDER_KEY, log_prompts=True, ttft_median_s=0.001, pace_s=0.0001)
    async with Emulator(config) as emulator:
        yield emulator


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> AsyncIterator[RunningNode]:
    node = await _start(tmp_path_factory.mktemp("node"), emulator, "strict: false")
    yield node
    await _stop(node)


@pytest.fixture(scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> AsyncIterator[RunningNode]:
    node = await _start(tmp_path_factory.mktemp("strict"), emulator, "strict: true, max_connections: 3")
    yield node
    await _stop(node)


def deep_schema(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


def image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


NOT_JSON = {
    "1 truncated": b'{"model":',
    "1 malformed": b'{"model": "demo",}',
    "3 empty": b"",
    "4 not UTF-8": b'{"model": "\xff"}',
    "5 deep objects": b'{"a":' * 100_000,
    "5 deep arrays": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "6 long integer": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "7 NaN": b'{"temperature": NaN}',
    "7 infinite": b'{"temperature": 1e999}',
    "8 lone surrogate": rb'{"model": "\ud800"}',
    "9 key twice": b'{"model": "demo", "model": "other"}',
}
NOT_AN_OBJECT = {"2 string": b'"x"', "2 array": b"[]", "2 number": b"42", "2 null": b"null"}
BAD_FIELDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "16": [
        ("messages", {"messages": None}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "Hello"}),
        ("messages[0]", {"messages": [123]}),
        ("messages[0].role", {"messages": [{}]}),
        ("messages[1].role", {"messages": [*HELLO, {"role": "wizard", "content": "x"}]}),
    ],
    "18": [("max_tokens", {"max_tokens": value}) for value in (-1, 0, "5", 1.5, 1e18, 10**18)],
    "19": [("n", {"n": value}) for value in (0, 1000, True)],
    "20": [
        ("temperature", {"temperature": 3}),
        ("top_p", {"top_p": 0}),
        *(("presence_penalty", {"presence_penalty": value}) for value in (3, -3)),
        *(("frequency_penalty", {"frequency_penalty": value}) for value in (3, -3)),
    ],
    "21": [
        ("logit_bias", {"logit_bias": value})
        for value in ({"x": 1}, {"1": 101}, {"1": -101}, {str(i): 1 for i in range(1025)})
    ],
    "22": [("top_logprobs", {"top_logprobs": 21, "logprobs": True}), ("top_logprobs", {"top_logprobs": 5})],
    "23": [("stop", {"stop": value}) for value in (["a"] * 5, "", [], "x" * 10_240)],
    "24": [("stream_options", {"stream_options": {"include_usage": True}})],
    "26": [
        ("tool_choice", {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "g"}}}),
    ],
}
BAD_SCHEMAS = {
    "too deep": deep_schema(65),
    "1 MB": {"description": "x" * 1_000_000},
    "catastrophic regex": {"type": "string", "pattern": "(a+)+$"},
    "type 123": {"type": 123},
    "circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
}
BAD_IMAGES = {
    "http": "http://127.0.0.1:1/cat.png",
    "metadata address": "http://169.254.169.254/latest/meta-data/",
    "file": "file:///etc/passwd",
    "bomb": "data:image/png;base64," + "A" * 1_000_000,
}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        *(pytest.param(body, "could not parse", id=name) for name, body in NOT_JSON.items()),
        *(pytest.param(body, "must be a JSON object", id=name) for name, body in NOT_AN_OBJECT.items()),
    ],
)
async def test_a_body_that_is_no_json_object_is_400(node: RunningNode, body: bytes, said: str) -> None:
    before = await node.counted()
    assert said in error_of(await node.exchange(request(body)), 400, None, None)
    assert await node.counted() == before
    await node.serves()


async def test_row_10_nul_characters_are_never_a_500(node: RunningNode) -> None:
    nul = [{"role": "user", "content": "a\0b"}]
    assert (await node.exchange(request(chat(messages=nul)))).status == 200
    error_of(await node.exchange(request(chat(model="de\0mo"))), 404, "model_not_found", "model")
    await node.serves()


@pytest.mark.parametrize(
    ("pieces", "status", "code"),
    [
        pytest.param([request(chat(), content_type="text/plain")], 415, "unsupported_content_type", id="11 text"),
        pytest.param([request(chat(), content_type=None)], 400, None, id="11 none"),
        pytest.param([request(b"", length=MAX_BODY_BYTES + 1)], 413, "request_too_large", id="12 announced"),
        pytest.param(
            chunked(*[b"10000\r\n" + b"a" * 0x10000 + b"\r\n"] * 40), 413, "request_too_large", id="12 chunk by chunk"
        ),
        pytest.param(
            [request(gzip.compress(b"a" * 5_000_000), CHAT, "POST", "content-encoding: gzip")],
            415,
            "unsupported_content_type",
            id="13 gzip",
        ),
        pytest.param(
            [request(chat(), CHAT, "POST", "x-long: " + "a" * 33_000)], 431, "headers_too_large", id="14 long header"
        ),
        pytest.param(
            [request(chat(), CHAT, "POST", *(f"x-{i}: y" for i in range(65)))],
            431,
            "headers_too_large",
            id="14 many headers",
        ),
        pytest.param(
            [request(chat(), CHAT, "POST", "transfer-encoding: chunked")], 400, None, id="15 two kinds of length"
        ),
        pytest.param(chunked(b"zz\r\nhello\r\n"), 400, None, id="15 bad chunk size"),
    ],
)
async def test_what_is_wrong_with_the_http_is_said_and_the_connection_closed(
    node: RunningNode, pieces: list[bytes], status: int, code: str | None
) -> None:
    before = await node.counted()
    answer = await node.exchange(*pieces)
    error_of(answer, status, code, None)
    assert answer.headers["connection"] == "close"
    assert await node.counted() == before
    await node.serves()


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_row_12_a_client_that_sends_all_of_an_oversize_reads_its_413_without_a_reset(
    node: RunningNode, announced: bool
) -> None:
    body = b"a" * (3 * MAX_BODY_BYTES)
    pieces = [request(body)] if announced else chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    assert (await reader.read()).startswith(b"HTTP/1.1 413")
    writer.close()


@pytest.mark.parametrize(
    ("param", "fields"),
    [pytest.param(*case, id=f"{row} {case[0]}") for row, cases in BAD_FIELDS.items() for case in cases],
)
async def test_a_field_out_of_bounds_is_400_and_named(node: RunningNode, param: str, fields: dict[str, Any]) -> None:
    before = await node.counted()
    error_of(await node.exchange(request(chat(**fields))), 400, None, param)
    assert await node.counted() == before
    await node.serves()


async def test_row_17_an_unknown_model_is_404(node: RunningNode) -> None:
    before = await node.counted()
    for path, body in ((CHAT, chat(model="nope")), (COMPLETIONS, completion("Hi").replace(b"demo", b"nope"))):
        error_of(await node.exchange(request(body, path)), 404, "model_not_found", "model")
    assert await node.counted() == before
    await node.serves()


async def test_row_17_a_model_is_retrieved_by_its_name(node: RunningNode) -> None:
    listed = (await node.exchange(request(b"", "/v1/models", "GET"))).json()["data"]
    for entry in listed:
        one = await node.exchange(request(b"", f"/v1/models/{entry['id']}", "GET"))
        assert (one.status, one.json()) == (200, entry)
    for unknown in ("nope", "org/nope", ""):
        error_of(await node.exchange(request(b"", f"/v1/models/{unknown}", "GET")), 404, "model_not_found", "model")


async def test_row_18_more_output_than_any_equivalent_writes_is_400_and_stays(node: RunningNode) -> None:
    _, sent = await node.counted()
    error_of(await node.exchange(request(chat(max_tokens=1_000_000))), 400, "context_length_exceeded", "max_tokens")
    assert (await node.counted())[1] == sent
    assert (await node.stats())["by_ending"]["rejected"] >= 1
    await node.serves()


async def test_a_cost_budget_below_the_only_price_is_400_and_stays(node: RunningNode) -> None:
    _, sent = await node.counted()
    answer = await node.exchange(request(chat(spillway={"cost_budget_usd": 0.0})))
    assert "cost_budget_usd of 0.0" in error_of(answer, 400, "cost_budget", "spillway.cost_budget_usd")
    assert answer.headers["x-spillway-reason"] == "cost_budget"
    assert (await node.counted())[1] == sent
    assert (await node.stats())["by_reason"]["cost_budget"] >= 1


async def test_statistics_say_how_each_provider_stands(node: RunningNode) -> None:
    providers = (await node.stats())["providers"]
    assert providers == {
        "holysheep": {
            "available": True,
            "paused_s": 0.0,
            "isolated_by": None,
            "breaker": "closed",
            "opened_by": None,
            "not_closed_for_s": None,
            "tried_in_s": 0.0,
            "in_flight": 0,
            "zone": "cloud",
            "emulated": False,
            "weight": 1.0,
        }
    }


async def test_row_18_without_max_tokens_the_provider_is_given_a_cap(node: RunningNode) -> None:
    body = json.dumps({"model": "demo", "messages": HELLO}).encode()
    assert (await node.exchange(request(body))).status == 200
    assert "max_tokens" in node.emulator.log.records[-1]["fields"]


@pytest.mark.parametrize("schema", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
async def test_row_25_a_harmful_schema_is_400_within_five_seconds(node: RunningNode, schema: dict[str, Any]) -> None:
    before = await node.counted()
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    begun_s = time.monotonic()
    for fields in ({"response_format": response_format}, {"tools": [tool("f", schema)]}):
        error_of(await node.exchange(request(chat(**fields))), 400, None)
    assert time.monotonic() - begun_s < 5
    assert await node.counted() == before
    await node.serves()


async def test_row_27_unknown_parameters_are_listed_and_do_not_leave(node: RunningNode) -> None:
    answer = await node.exchange(request(chat(base_url="http://x", user="me", zzz=1)))
    assert answer.status == 200
    assert answer.headers["x-ignored-params"] == "base_url, user, zzz"
    assert set(node.emulator.log.records[-1]["fields"]) == {"messages", "max_tokens", "model", "stream"}


async def test_row_27_strict_mode_refuses_unknown_parameters(strict: RunningNode) -> None:
    before = await strict.counted()
    error_of(await strict.exchange(request(chat(zzz=1))), 400, None, "zzz")
    assert await strict.counted() == before
    await strict.serves()


@pytest.mark.parametrize("url", BAD_IMAGES.values(), ids=BAD_IMAGES)
async def test_row_28_an_image_that_is_not_inside_the_request_is_never_fetched(node: RunningNode, url: str) -> None:
    before = await node.counted()
    answer = await node.exchange(request(chat(messages=image(url))))
    error_of(answer, 400, "unsupported_media", "messages[0].content[0].image_url.url")
    assert await node.counted() == before
    await node.serves()


async def test_row_29_a_prompt_beyond_every_context_is_400_and_stays(node: RunningNode) -> None:
    _, sent = await node.counted()
    long = [{"role": "user", "content": "word " * 1000}]
    error_of(
        await node.exchange(request(chat(model="small", messages=long))), 400, "context_length_exceeded", "messages"
    )
    assert (await node.counted())[1] == sent
    await node.serves()


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        pytest.param([-1], "prompt", id="30 negative"),
        pytest.param([1, 2**31], "prompt", id="30 beyond any vocabulary"),
        pytest.param([[1], [-1]], "prompt[1]", id="30 negative in a list"),
        pytest.param(["a"] * 65, "prompt", id="31 too many prompts"),
    ],
)
async def test_a_bad_prompt_is_400_and_named(node: RunningNode, prompt: Any, param: str) -> None:
    before = await node.counted()
    error_of(await node.exchange(request(completion(prompt), COMPLETIONS)), 400, None, param)
    assert await node.counted() == before
    await node.serves()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/dashboard/nope", 404),
        ("POST", "/", 405),
        ("GET", "/v1/nope", 404),
        ("POST", "/v1/../admin", 404),
        ("GET", "/v1/../admin/stats", 404),
        ("GET", "/v1/%2e%2e/admin/stats", 404),
        ("GET", "//v1", 404),
        ("GET", "//v1/models", 404),
        ("POST", "//v1/chat/completions", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/%ff%00", 404),
        ("GET", "/docs", 404),
        ("OPTIONS", "*", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/admin/stats", 404),
        ("GET", "/admin/usage", 404),
        ("POST", "/admin/providers/holysheep/isolate", 404),
        ("POST", "/v1/usage", 405),
        ("POST", "/livez", 405),
    ],
)
async def test_row_32_unknown_paths_and_methods_get_openai_errors(
    node: RunningNode, method: str, path: str, status: int
) -> None:
    before = await node.counted()
    answer = await node.exchange(request(b"", path, method))
    error_of(answer, status, HTTPStatus(status).phrase.lower().replace(" ", "_"), None)
    assert ("allow" in answer.headers) == (status == 405)
    assert await node.counted() == before
    await node.serves()


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "", "\xff", "x:99999999", "x/../y?#"])
async def test_row_32_a_strange_host_header_makes_no_strange_error(node: RunningNode, host: str) -> None:
    sent = request(b"", "/v1/nope", "GET").replace(b"host: x", b"host: " + host.encode("latin-1"))
    assert "`/v1/nope`" in error_of(await node.exchange(sent), 404, "not_found", None)


@pytest.mark.parametrize(("method", "path", "body"), [
    ("POST", CHAT, chat()), ("POST", COMPLETIONS, completion("Hi")), ("GET", "/v1/models", b""),
    ("GET", "/v1/models/demo", b""),
])  # fmt: skip
@pytest.mark.parametrize("key", [None, "", "sk-revoked", KEY + "x", KEY[:-1], PROVIDER_KEY])
async def test_row_33_without_a_known_key_nothing_is_served_or_counted(
    node: RunningNode, method: str, path: str, body: bytes, key: str | None
) -> None:
    before = await node.counted()
    answer = await node.exchange(request(body, path, method, key=key))
    error_of(answer, 401, "invalid_api_key", None)
    assert answer.headers["www-authenticate"] == "bearer"
    assert await node.counted() == before


async def test_row_33_the_key_is_asked_for_before_the_body_is_looked_at(node: RunningNode) -> None:
    for sent in (request(b"{", key=None), request(b"", key=None, length=MAX_BODY_BYTES + 1)):
        error_of(await node.exchange(sent), 401, "invalid_api_key", None)
    await node.serves()


@pytest.mark.parametrize("header", [(), ("x-spillway-require-local: true",)], ids=["body", "header"])
async def test_row_34_a_pinned_request_that_only_the_cloud_can_serve_stays_and_is_403(
    node: RunningNode, header: tuple[str, ...]
) -> None:
    _, sent = await node.counted()
    body = chat() if header else chat(spillway={"require_local": True})
    answer = await node.exchange(request(body, CHAT, "POST", *header))
    error_of(answer, 403, "private_not_servable", "model")
    assert answer.headers["x-spillway-reason"] == "private_not_servable"
    assert (await node.counted())[1] == sent
    await node.serves()


async def test_connections_beyond_the_configured_cap_are_turned_away(strict: RunningNode) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", strict.port) for _ in range(3)]
    assert (await strict.exchange(request(b"", "/livez", "GET"))).status == 200
    for sent in (request(chat()), request(b"", "/metrics", "GET")):
        answer = await strict.exchange(sent)
        assert (answer.status, answer.json()["error"]["code"]) == (503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
    for _, writer in idle:
        writer.close()
    give_up = time.monotonic() + 2
    while (await strict.exchange(request(b"", "/livez", "GET"))).status != 200:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
    await strict.serves()
