"""The sockets: routes, the bearer key, rate limits, and sending a draft write by write."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import ssl
import struct
import time
from itertools import count
from types import TracebackType
from typing import Any, NoReturn, Self
from weakref import WeakKeyDictionary

from aiohttp import web

from node.emulator import refusals, replies
from node.emulator.bill import Journal, arrival, total_nano_usd
from node.emulator.calls import Call, Planner
from node.emulator.config import EmulatorConfig
from node.emulator.limits import RateLimits
from node.emulator.refusals import Refusal
from node.emulator.replies import Draft, Ending, State
from node.emulator.requests import Ask, BadRequest, parse
from node.emulator.switches import Switch, Switchboard

_MAX_BODY_BYTES = 64 * 1024 * 1024
_UNREADABLE = refusals.bad_request(BadRequest("the body is not JSON"))


class Emulator:
    """The server. ``async with Emulator(config) as emulator`` listens inside the block.

    `switches` arms misbehaviours, `bill` holds one record per call that was worked on, `log` one per request that
    arrived, refused or not. Over HTTP the same three are ``/emulator/switches``, ``/emulator/bill`` and
    ``/emulator/log``; nothing in a request to the API itself can reach them.
    """

    def __init__(self, config: EmulatorConfig | None = None) -> None:
        self.config = config or EmulatorConfig()
        self.switches = Switchboard(self.config.seed)
        self.bill = Journal(self.config.bill_path, fsync=self.config.fsync)
        self.log = Journal(self.config.log_path, fsync=self.config.fsync)
        self._serial = count(len(self.bill.records) + 1)
        self._planner = Planner(self.config)
        self._limits = RateLimits(
            requests_per_minute=self.config.requests_per_minute, max_concurrent=self.config.max_concurrent
        )
        self._stopping = False
        self._used: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it listens, for example ``http://127.0.0.1:40123``."""
        return f"{'https' if self.config.tls_cert else 'http'}://{self.config.host}:{self._port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client calls its base URL."""
        return f"{self.url}/v1"

    @property
    def billed_nano_usd(self) -> int:
        """The bill's total."""
        return total_nano_usd(self.bill.records)

    async def start(self) -> None:
        """Listen. Raises `OSError` when the address is taken."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/emulator/bill", self._get_bill)
        app.router.add_get("/emulator/log", self._get_log)
        app.router.add_get("/emulator/switches", self._get_switches)
        app.router.add_put("/emulator/switches", self._put_switches)
        # A client that goes away cancels its handler, which is how its bill is closed at once.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        tls = None
        if self.config.tls_cert is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(self.config.tls_cert, self.config.tls_key)
        site = web.TCPSite(self._runner, self.config.host, self.config.port, ssl_context=tls, backlog=1024)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection and the bill."""
        self._stopping = True
        if self._runner is not None:
            await self._runner.cleanup()
        self.bill.close()
        self.log.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # The provider's API

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, chat=False)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if not self._authorized(request):
            return self._refuse(refusals.unauthorized(request.headers.get("authorization", "")), "hs_req_models")
        listed = [
            {"id": model, "object": "model", "created": 0, "owned_by": "spillway-emulator"}
            for model in self.config.prices
        ]
        return web.json_response({"object": "list", "data": listed})

    async def _serve(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        arrived_s = asyncio.get_running_loop().time()
        reused = self._used.get(request.transport, False)
        self._used[request.transport] = True
        serial = next(self._serial)
        request_id = f"hs_req_{self.config.seed}_{serial:08d}"
        raw = await request.read()
        ask, refusal = self._understand(request, raw, chat=chat)
        switch = None if ask is None else self._draw(ask, reused=reused)
        if switch is not None and (spoilt := self._refuse_by_switch(switch, request, request_id)) is not None:
            self._note(request, raw, request_id, ask, switch, spoilt.status)
            return spoilt
        if switch is Switch.RESET_ON_REUSE:
            self._note(request, raw, request_id, ask, switch, 0)
            await _reset(request)
        if ask is None or refusal is not None or (refusal := self._limits.enter(arrived_s)) is not None:
            refusal = refusal or _UNREADABLE
            self._note(request, raw, request_id, ask, switch, refusal.status)
            return self._refuse(refusal, request_id)
        self._note(request, raw, request_id, ask, switch, 200)
        call = self._planner.plan(ask, serial, switch, arrived_s)
        try:
            return await self._send(request, request_id, call)
        finally:
            self._limits.leave()
            if not call.settled:
                tokens = call.tokens_when_left(asyncio.get_running_loop().time())
                self._settle(call, State.ERROR if self._stopping else State.CLIENT_CLOSED, tokens)

    def _draw(self, ask: Ask, *, reused: bool) -> Switch | None:
        skip = replies.WHOLE_ONLY if ask.stream else replies.STREAM_ONLY
        return self.switches.draw(skip=skip if reused else skip | {Switch.RESET_ON_REUSE})

    def _understand(self, request: web.Request, raw: bytes, *, chat: bool) -> tuple[Ask | None, Refusal | None]:
        """The request if it can be read, and why it is refused if it is: a wrong key before a wrong body."""
        ask: Ask | None = None
        refusal: Refusal | None = None
        try:
            body = json.loads(raw)
            if not isinstance(body, dict):
                raise BadRequest("the body must be a JSON object")
            ask = parse(body, chat=chat)
            if ask.model not in self.config.prices:
                raise BadRequest(f"no model {ask.model!r}", "model", status=404, code="model_not_found")
        except (ValueError, RecursionError):
            refusal = _UNREADABLE
        except BadRequest as error:
            refusal = refusals.bad_request(error)
        if not self._authorized(request):
            refusal = refusals.unauthorized(request.headers.get("authorization", ""))
        return ask, refusal

    def _authorized(self, request: web.Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return False
        return self.config.api_key is None or hmac.compare_digest(key.encode(), self.config.api_key.encode())

    def _headers(self, request_id: str) -> dict[str, str]:
        limits = self._limits.headers(asyncio.get_running_loop().time(), time.time())
        return {"server": "spillway-cloud-emulator", "x-request-id": request_id} | limits

    def _refuse(self, refusal: Refusal, request_id: str) -> web.Response:
        headers = self._headers(request_id)
        if refusal.retry_after is not None:
            headers["retry-after"] = refusal.retry_after
        body = refusal.body(self.config.error_shape, request_id)
        return web.Response(status=refusal.status, headers=headers, body=body, content_type="application/json")

    def _refuse_by_switch(self, switch: Switch, request: web.Request, request_id: str) -> web.Response | None:
        refusal = refusals.for_switch(switch, request.headers.get("authorization", ""), time.time())
        if refusal is not None:
            return self._refuse(refusal, request_id)
        headers = self._headers(request_id)
        html = refusals.html_error(switch)
        if html is not None:
            return web.Response(status=html[0], body=html[1], headers=headers, content_type="text/html")
        if switch is Switch.REDIRECT:
            return web.Response(status=301, headers=headers | {"location": self.config.redirect_to})
        if switch is Switch.GZIP_BOMB:
            headers |= {"content-encoding": "gzip", "content-type": "application/json"}
            return web.Response(body=refusals.gzip_bomb(), headers=headers)
        return None

    async def _send(self, request: web.Request, request_id: str, call: Call) -> web.StreamResponse:
        draft = call.draft(self.config.keepalive_s)
        loop = asyncio.get_running_loop()
        response = web.StreamResponse(headers=self._headers(request_id) | {"content-type": draft.content_type})
        if draft.declared_length is None:
            response.enable_chunked_encoding()
        else:
            response.content_length = draft.declared_length
        if call.switch is Switch.SILENCE:
            await _forever()
        writes = draft.writes
        if not writes:
            await response.prepare(request)
        last = len(writes) - 1
        for index, piece in enumerate(writes):
            delay_s = call.arrived_s + piece.at_s - loop.time()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            if index == 0:
                await response.prepare(request)
            if index == last and draft.ending is not Ending.HANG:
                # On the bill before the last byte is out, so whoever saw the end can read the bill.
                self._settle(call, draft.state, call.sent_tokens + piece.tokens)
            await response.write(piece.data)
            call.sent_tokens += piece.tokens
        await _end(request, response, draft)
        return response

    def _settle(self, call: Call, state: State, completion_tokens: int) -> None:
        self.bill.append(call.bill_record(state, completion_tokens))

    def _note(
        self, request: web.Request, raw: bytes, request_id: str, ask: Ask | None, switch: Switch | None, status: int
    ) -> None:
        """Log an arrival, whatever becomes of it. `status` 0 is a reset."""
        self.log.append(
            arrival(
                request_id=request_id,
                path=request.path,
                headers=request.headers,
                body=raw,
                ask=ask,
                switch=switch,
                status=status,
                keep_prompts=self.config.log_prompts,
            )
        )

    # The emulator's own routes

    async def _get_bill(self, request: web.Request) -> web.Response:
        return web.json_response({"total_nano_usd": self.billed_nano_usd, "records": self.bill.records})

    async def _get_log(self, request: web.Request) -> web.Response:
        return web.json_response({"records": self.log.records})

    async def _get_switches(self, request: web.Request) -> web.Response:
        return web.json_response(self.switches.as_json())

    async def _put_switches(self, request: web.Request) -> web.Response:
        try:
            wanted = json.loads(await request.read())
            if not isinstance(wanted, dict):
                raise ValueError("give an object of switches")
            self.switches.replace(wanted)
        except ValueError as error:
            return web.json_response({"error": {"message": str(error)}}, status=400)
        return web.json_response(self.switches.as_json())


async def _end(request: web.Request, response: web.StreamResponse, draft: Draft) -> None:
    if draft.again is not None:
        data, every_s = draft.again
        while True:
            await asyncio.sleep(every_s)
            await response.write(data)
    if draft.ending is Ending.HANG:
        await _forever()
    if draft.ending is Ending.RESET:
        await _reset(request)
    if draft.ending is Ending.CLOSE:
        if request.transport is not None:
            request.transport.close()
        await _forever()
    await response.write_eof()


async def _forever() -> NoReturn:
    """Wait until the client goes away, which cancels the handler."""
    while True:
        await asyncio.Event().wait()


async def _reset(request: web.Request) -> NoReturn:
    """Close with an RST: a lingering time of 0 makes the kernel throw away what is unsent."""
    transport = request.transport
    if transport is not None:
        held = transport.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await _forever()
