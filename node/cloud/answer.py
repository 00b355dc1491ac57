"""One answer from a provider, as it comes off the socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

import httpx
import msgspec

from node.cloud.config import ProviderConfig
from node.cloud.errors import FOREIGN, Complaint, from_complaint, from_exception, read_complaint
from node.errors import UpstreamError, UpstreamTruncated

MAX_ERROR_BYTES: Final = 64 * 1024
_ERROR_BODY_S: Final = 2.0
_UNREADABLE: Final = (UpstreamError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Trip:
    """Counters of one use of the gate. `opened`: it needed a new connection; `resent`: the body went out twice."""

    __slots__ = ("body_bytes", "bytes_in", "bytes_out", "model", "opened", "request_id", "resent", "rule", "status")

    def __init__(self, request_id: str | None, model: str | None, rule: str, body_bytes: int) -> None:
        self.request_id = request_id
        self.model = model
        self.rule = rule
        self.body_bytes = self.bytes_out = body_bytes
        self.bytes_in = 0
        self.status: int | None = None
        self.opened = False
        self.resent = False


class Answer:
    """A provider's answer whose status line has arrived. `aclose()` must be called; it drops what is unread.

    A body read to its end leaves the connection in the pool, anything else closes it.
    """

    __slots__ = ("_config", "_parts", "_response", "_settle", "_trip", "headers", "status")

    def __init__(
        self, response: httpx.Response, config: ProviderConfig, trip: Trip, settle: Callable[[Trip], None]
    ) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._config = config
        self._trip = trip
        self._settle: Callable[[Trip], None] | None = settle
        self._parts: AsyncIterator[bytes] = response.stream.__aiter__()  # type: ignore[union-attr]

    @property
    def request_bytes(self) -> int:
        """How long the body was that this answers."""
        return self._trip.body_bytes

    @property
    def compressed(self) -> bool:
        """Whether the body is compressed, though we asked for it plain: then it is never unpacked."""
        return any(
            name.lower() == b"content-encoding" and value.lower() not in (b"", b"identity")
            for name, value in self.headers.raw
        )

    async def read(self) -> bytes:
        """The next bytes of the body as they arrive, ``b""`` at its end. Raises `UpstreamError` subclasses."""
        try:
            async for part in self._parts:
                self._trip.bytes_in += len(part)
                return part
        except FOREIGN as error:
            raise from_exception(error, self._config.name, answering=True) from error
        return b""

    async def read_all(self, limit_bytes: int, head: bytes = b"") -> bytes:
        """`head` and the rest of the body. Raises `UpstreamTruncated` once it is beyond `limit_bytes`."""
        parts, size = [head], len(head)
        while size <= limit_bytes:
            part = await self.read()
            if not part:
                return b"".join(parts)
            size += len(part)
            parts.append(part)
        raise UpstreamTruncated(f"{self._config.name} sent more than {limit_bytes} bytes")

    async def failure(self, unix_s: float) -> UpstreamError:
        """Our error for this answer's status and what its body says, if that is short, plain and comes soon.

        `unix_s` is the time now, for a `Retry-After` date in an answer without a `Date`.
        """
        complaint = Complaint()
        if not self.compressed:
            with contextlib.suppress(*_UNREADABLE):
                async with asyncio.timeout(_ERROR_BODY_S):
                    complaint = read_complaint(msgspec.json.decode(await self.read_all(MAX_ERROR_BYTES)))
        return from_complaint(
            self.status, complaint, self._config.name, api_key=self._config.api_key, headers=self.headers, unix_s=unix_s
        )

    async def aclose(self) -> None:
        """Give the connection back, or close it at once if the body was not read to its end. Safe to call twice."""
        if self._settle is None:
            return
        settle, self._settle = self._settle, None
        settle(self._trip)
        try:
            if isinstance(self._parts, AsyncGenerator):  # else the loop would have to finish it one day
                await self._parts.aclose()
            await self._response.stream.aclose()  # type: ignore[union-attr]
        except FOREIGN:
            return  # closing a broken connection: it is gone either way
