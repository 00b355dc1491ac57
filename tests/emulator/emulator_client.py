"""Settings for a fast emulator, and a bare HTTP client that shows exactly what came over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from node.emulator import Emulator, EmulatorConfig

KEY = "cr_test"
WAIT_S = 10.0


def fast(**changes: Any) -> EmulatorConfig:
    """A configuration whose answers take milliseconds."""
    settings: dict[str, Any] = {
        "seed": 1,
        "api_key": KEY,
        "ttft_median_s": 0.004,
        "pace_s": 0.0005,
        "keepalive_s": 0.01,
        "answer_tokens_median": 40.0,
    }
    return EmulatorConfig(**(settings | changes))


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello"}]} | changes


def streaming(**changes: Any) -> dict[str, Any]:
    return chat(stream=True, stream_options={"include_usage": True}, **changes)


@dataclass(frozen=True)
class Heard:
    """What a connection gave: status, headers, the body without HTTP's framing, and how it ended.

    `end` is ``clean``, ``cut`` (closed early), ``reset`` or ``open`` (still going when we stopped reading).
    """

    status: int
    headers: dict[str, str]
    writes: list[bytes]
    end: str

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The JSON of every ordinary SSE event up to [DONE]."""
        datas = [part.partition(b"data: ")[2] for part in self.body.split(b"\n\n") if b"data: " in part]
        return [json.loads(data) for data in datas if data != b"[DONE]"]


class Wire:
    """One TCP connection that speaks HTTP/1.1 and can be used again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, emulator: Emulator) -> Wire:
        host, _, port = emulator.url.partition("//")[2].partition(":")
        return cls(*await asyncio.open_connection(host, int(port), limit=2**26))

    async def ask(
        self,
        body: Any,
        *,
        path: str = "/v1/chat/completions",
        key: str | None = KEY,
        headers: dict[str, str] | None = None,
        patience_s: float = WAIT_S,
        enough: Callable[[bytes], bool] = lambda body: False,
    ) -> Heard:
        """POST `body`, and read until the answer ends, it is `enough`, or `patience_s` is over."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"host": "emulator", "content-length": str(len(data)), "content-type": "application/json"}
        lines |= {} if key is None else {"authorization": f"Bearer {key}"}
        head = "".join(f"{name}: {value}\r\n" for name, value in (lines | (headers or {})).items())
        self._writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        heard = Heard(0, {}, [], "open")
        try:
            async with asyncio.timeout(patience_s):
                status_line, *header_lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                pairs = (line.partition(": ") for line in header_lines if line)
                named = {name.lower(): value for name, _, value in pairs}
                heard = Heard(int(status_line.split()[1]), named, [], "open")
                return await self._read_body(heard, enough)
        except TimeoutError:
            return heard
        except ConnectionResetError:
            return Heard(heard.status, heard.headers, heard.writes, "reset")
        except asyncio.IncompleteReadError:
            return Heard(heard.status, heard.headers, heard.writes, "cut")

    async def _read_body(self, heard: Heard, enough: Callable[[bytes], bool]) -> Heard:
        clean = Heard(heard.status, heard.headers, heard.writes, "clean")
        if "content-length" in heard.headers:
            heard.writes.append(await self._reader.readexactly(int(heard.headers["content-length"])))
            return clean
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            heard.writes.append((await self._reader.readexactly(size + 2))[:-2])
            if enough(heard.body if len(heard.writes) < 1000 else heard.writes[-1]):
                return heard
        await self._reader.readexactly(2)
        return clean

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def ask(emulator: Emulator, body: Any, **options: Any) -> Heard:
    """One request on a connection of its own."""
    wire = await Wire.open(emulator)
    try:
        return await wire.ask(body, **options)
    finally:
        with contextlib.suppress(ConnectionResetError):
            await wire.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 -- the emulator has no event for it
            await asyncio.sleep(0.001)
