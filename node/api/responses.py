"""Writing to the client: plain ASGI messages, so that a chunk goes from the backend to the socket untouched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from typing import Any

from starlette.types import Send

from node.api.reader import Receive, discard_body
from node.backend import Chunk
from node.errors import SpillwayError, error_body, render
from node.sse import DONE, frame

HeaderList = list[tuple[bytes, bytes]]


def header_list(headers: Mapping[str, str]) -> HeaderList:
    """Headers as ASGI wants them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def send_document(send: Send, status: int, headers: HeaderList, body: bytes) -> None:
    """One whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: SpillwayError, request_id: str, *, unread: Receive | None = None) -> None:
    """An OpenAI-shaped error. `unread` brings what is left of a body nobody wants: it ends the connection."""
    status, headers, body = render(error)
    fields: HeaderList = [*header_list(headers), (b"x-request-id", request_id.encode())]
    if unread is None:
        await send_document(send, status, fields, body)
        return
    fields += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await discard_body(unread)
    await send({"type": "http.response.body", "body": b""})


async def send_stream(send: Send, headers: HeaderList, chunks: AsyncIterator[Chunk]) -> None:
    """An SSE answer. One that fails after its first byte is ended with `break_off`."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for chunk in chunks:
        if chunk.data:
            await send({"type": "http.response.body", "body": chunk.data, "more_body": True})
    await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def break_off(send: Send, error: SpillwayError) -> None:
    """The end of an SSE answer that cannot go on: an error event, and ``[DONE]`` all the same."""
    await send({"type": "http.response.body", "body": frame(error_body(error)) + DONE, "more_body": False})


class Outgoing:
    """`send`, and how far the answer has got. `more_headers` is asked when it begins."""

    __slots__ = ("_send", "ended", "more_headers", "started", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.more_headers: Callable[[], HeaderList] | None = None
        self.started = False
        self.status: int | None = None
        self.ended = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send; what was begun counts as begun even where sending is interrupted."""
        self.started = True
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.more_headers is not None:
                message["headers"] = [*message["headers"], *self.more_headers()]
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self._send(message)
