"""Reading a request's body into memory, once, up to a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from node.api.body import Headers
from node.errors import InvalidRequest, RequestTooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LINGER_S: Final = 1.0


class ClientGone(Exception):
    """The client hung up (or was cut off) before its request was complete: there is nobody to answer."""


async def read_body(
    receive: Receive, headers: Headers, limit_bytes: int, hold: Callable[[int], None] = lambda size_bytes: None
) -> bytes:
    """The whole body. `hold` is told the size of each piece before the next is read, and may raise.

    Raises `RequestTooLarge` before reading anything when the announced length is over the limit, and as soon as
    the limit is passed otherwise; its answer needs ``connection: close`` and `discard_body`, for the rest of the body
    is still on its way. Raises `InvalidRequest` for a length that is not a number, `ClientGone` on a disconnect.
    """
    for name, value in headers:
        if name == b"content-length":
            if not (value.isdigit() and value.isascii()):
                raise InvalidRequest("The content-length header is not a number.")
            if len(value) > 18 or int(value) > limit_bytes:
                raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        hold(len(chunk))
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


async def discard_body(receive: Receive) -> None:
    """Drop what still arrives of a body that has been answered, up to its end or for a second.

    Closing over unread input resets the connection, and the client might never see the answer.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body", False):
                pass


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limit_bytes} bytes.")
