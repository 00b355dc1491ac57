"""The clients of the faults bench: who asks for what, who does not wait for the answer, and what each of them heard."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

HERE, ELSEWHERE = "here", "elsewhere"
"""The two models of this bench: one has an engine and may overflow, one is only in the cloud."""

HUNG_AFTER_S = 60.0
"""More than the longest wait and the longest call that the node's settings here allow, together."""

MAX_TOKENS = 64
_PINNED, _LEAVING, _STREAMED, _ELSEWHERE = 0.12, 0.08, 0.6, 0.5


@dataclass(frozen=True)
class Asked:
    """One request. `marker` is in its prompt and nowhere else; a client with `leaves_after_s` hangs up by then."""

    marker: str
    model: str
    pinned: bool
    stream: bool
    max_tokens: int = MAX_TOKENS
    leaves_after_s: float | None = None
    ignore_eos: bool = False

    def body(self) -> bytes:
        """The request on the wire."""
        document: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": f"Please explain the queue. ({self.marker})"}],
            "max_tokens": self.max_tokens,
            "spillway": {"require_local": True} if self.pinned else {},
        }
        if self.stream:
            document |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            document["ignore_eos"] = True
        return json.dumps(document).encode()


@dataclass
class Heard:
    """What came of it. Times are monotonic seconds.

    `done`: the answer said that it was over. `broken`: it broke off, or was not in OpenAI's form, in words.
    `left` and `hung`: the client hung up, as planned or because nothing had come to an end after `HUNG_AFTER_S`.
    """

    asked: Asked
    began_s: float
    ended_s: float = 0.0
    first_s: float | None = None
    status: int | None = None
    backend: str = "none"
    request_id: str | None = None
    text: str = ""
    finish: str | None = None
    completion_tokens: int | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    broken: str | None = None
    left: bool = False
    hung: bool = False
    identities: set[tuple[str, str]] = field(default_factory=set)
    raw_error: str = ""
    retry_after: str | None = None
    content_at_s: list[float] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Answered, and to the end."""
        return self.status == 200 and self.done and self.error is None and self.broken is None


def crowd(seed: int, count: int) -> list[Asked]:
    """The requests of a campaign: models, pins, streams and hang-ups in a seeded mix."""
    chance = random.Random(f"{seed}/crowd")
    asked = []
    for index in range(count):
        model = ELSEWHERE if chance.random() < _ELSEWHERE else HERE
        asked.append(
            Asked(
                marker=f"request-{seed}-{index:05d}",
                model=model,
                pinned=model == HERE and chance.random() < _PINNED / (1 - _ELSEWHERE),
                stream=chance.random() < _STREAMED,
                leaves_after_s=chance.uniform(0.0, 0.6) if chance.random() < _LEAVING else None,
            )
        )
    return asked


@asynccontextmanager
async def session(*, keep_alive: bool = True) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections for any number of clients, kept alive between requests or closed after each."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=not keep_alive),
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
    ) as made:
        yield made


async def ask(clients: aiohttp.ClientSession, url: str, asked: Asked) -> Heard:
    """Send one request to the node at `url`, and read what comes until it ends or the client loses patience."""
    heard = Heard(asked, time.monotonic())
    patience_s = HUNG_AFTER_S if asked.leaves_after_s is None else asked.leaves_after_s
    try:
        async with asyncio.timeout(patience_s):
            await _exchange(clients, url, heard)
    except TimeoutError:
        heard.left = asked.leaves_after_s is not None
        heard.hung = not heard.left
    except aiohttp.ClientError as error:
        heard.broken = f"{type(error).__name__}: {error}"
    except ValueError as error:
        heard.broken = f"not in OpenAI's form: {error}"
    heard.ended_s = time.monotonic()
    return heard


async def _exchange(clients: aiohttp.ClientSession, url: str, heard: Heard) -> None:
    headers = {"Content-Type": "application/json"}
    async with clients.post(f"{url}/v1/chat/completions", data=heard.asked.body(), headers=headers) as answer:
        heard.status = answer.status
        heard.backend = answer.headers.get("x-spillway-backend", "none")
        heard.request_id = answer.headers.get("x-request-id")
        heard.retry_after = answer.headers.get("retry-after")
        if answer.status == 200 and heard.asked.stream:
            await _stream(answer, heard)
            return
        body = (await answer.read()).decode("utf-8")
        document = json.loads(body)
        heard.first_s, heard.done = time.monotonic(), True
        if answer.status == 200:
            _take_document(document, heard)
        else:
            heard.error, heard.raw_error = document["error"], body


async def _stream(answer: aiohttp.ClientResponse, heard: Heard) -> None:
    rest = b""
    async for data in answer.content.iter_any():
        *frames, rest = (rest + data).split(b"\n\n")
        for each in frames:
            _take_event(each.decode("utf-8"), heard)
    if rest:
        raise ValueError(f"the stream ends inside an event: {rest[:80]!r}")


def _take_event(event: str, heard: Heard) -> None:
    if not event.startswith("data: "):
        raise ValueError(f"an event without data: {event[:80]!r}")
    if heard.done:
        raise ValueError("an event after [DONE]")
    payload = event.removeprefix("data: ")
    if payload == "[DONE]":
        heard.done = True
        return
    document = json.loads(payload)
    if "error" in document:
        heard.error, heard.raw_error = document["error"], payload
        return
    heard.identities.add((document["id"], document["model"]))
    if usage := document.get("usage"):
        heard.completion_tokens = usage["completion_tokens"]
    for choice in document["choices"]:
        if content := choice["delta"].get("content"):
            now_s = time.monotonic()
            heard.first_s = heard.first_s or now_s
            heard.content_at_s.append(now_s)
            heard.text += content
        heard.finish = choice.get("finish_reason") or heard.finish


def _take_document(document: dict[str, Any], heard: Heard) -> None:
    (choice,) = document["choices"]
    heard.identities.add((document["id"], document["model"]))
    heard.text, heard.finish = choice["message"]["content"] or "", choice["finish_reason"]
    heard.completion_tokens = document["usage"]["completion_tokens"]
