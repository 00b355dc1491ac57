"""``/v1/chat/completions`` and ``/v1/completions``: read, check, place, answer. A raw ASGI application for speed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from node.api.auth import Keyring
from node.api.body import check_content_type, parse_json
from node.api.connection import connection_of
from node.api.door import Door, Guest
from node.api.features import Admitted, admit, is_unreadable, pin_of
from node.api.rates import RateLimits
from node.api.reader import ClientGone, read_body
from node.api.responses import HeaderList, Outgoing, break_off, send_document, send_error, send_stream
from node.api.schema import ParsedRequest
from node.backend import Chunk, Kind
from node.dispatch.conversations import Conversations
from node.dispatch.dispatcher import Answer, Dispatcher
from node.dispatch.experience import Experience
from node.dispatch.journey import Journey, cancelled_by, ending_of
from node.dispatch.outcome import Ending
from node.dispatch.sharing import SharedAnswer, Sharing
from node.errors import (
    HostExhausted,
    HostStrained,
    PermissionDenied,
    RateLimited,
    RequestTimeout,
    RequestTooLarge,
    ShuttingDown,
    SpillwayError,
)
from node.privacy.content import ContentRules
from node.request_id import new_request_id
from node.routing.values import Decision, Reason, Target
from node.settings import Settings
from node.store.cache import CachedAnswer, cache_key
from node.tracing import RequestTrace

Parse = Callable[..., ParsedRequest]

BeginTrace = Callable[[Iterable[tuple[bytes, bytes]], Kind, str, str, float], RequestTrace]
"""Headers, endpoint, its path, request id and time of arrival: the trace of a request."""

_STREAM_HEADERS: HeaderList = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_JSON_HEADERS: HeaderList = [(b"content-type", b"application/json")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the endpoints work with; built in `node.app`."""

    settings: Callable[[], Settings]
    keyring: Keyring
    rates: RateLimits
    door: Door
    dispatcher: Dispatcher
    sharing: Sharing
    experience: Mapping[str, Experience]
    conversations: Conversations
    vocabulary_size: Callable[[str], int | None]
    clock: Callable[[], float]
    report: Callable[[Journey, Ending, SpillwayError | None], None]
    content_rules: Callable[[], ContentRules]
    begin_trace: BeginTrace | None = None


class CompletionsEndpoint:
    """One of the two endpoints; `parse` and `kind` are what tells them apart."""

    def __init__(self, parts: Parts, parse: Parse, kind: Kind) -> None:
        self._parts = parts
        self._parse = parse
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Every way out answers the client, or knows that it has gone."""
        request_id = new_request_id()
        arrived_s = self._parts.clock()
        outgoing = Outgoing(send)
        if self._parts.begin_trace is None:
            await self._answer(scope, receive, outgoing, request_id, arrived_s, None)
            return
        trace = self._parts.begin_trace(scope["headers"], self._kind, scope["path"], request_id, arrived_s)
        error_code = None
        try:
            error_code = await self._answer(scope, receive, outgoing, request_id, arrived_s, trace)
        finally:
            trace.answered(self._parts.clock(), outgoing.status, error_code)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        outgoing: Outgoing,
        request_id: str,
        arrived_s: float,
        trace: RequestTrace | None,
    ) -> str | None:
        """Answer, and return the error's code where that is the answer."""
        streams = read = False
        try:
            try:
                with self._parts.door.through() as guest:
                    admitted, ignored = await self._admit(scope, receive, guest, request_id, arrived_s, outgoing, trace)
                    streams, read = admitted.call.stream, True
                    async with connection_of(scope).while_there():
                        await self._serve(admitted, ignored, outgoing)
            except SpillwayError as error:
                if not outgoing.started:
                    await send_error(outgoing, error, request_id, unread=None if read else _rest(error, receive))
                elif streams and not outgoing.ended:
                    await break_off(outgoing, error)
                return error.code
        except ClientGone:
            pass
        return None

    async def _admit(
        self,
        scope: Scope,
        receive: Receive,
        guest: Guest,
        request_id: str,
        arrived_s: float,
        outgoing: Outgoing,
        trace: RequestTrace | None,
    ) -> tuple[Admitted, tuple[str, ...]]:
        parts, headers = self._parts, scope["headers"]
        settings = parts.settings()  # once: a reload in the middle of a request is for the next
        caller = parts.keyring.authenticate(headers)
        if caller.is_limited:
            outgoing.more_headers = lambda: parts.rates.headers(caller)
        check_content_type(headers)
        body = await read_body(receive, headers, settings.api.max_body_bytes, guest.hold)
        document = parse_json(body)
        model = document.get("model")
        vocabulary_size = parts.vocabulary_size(model) if isinstance(model, str) else None
        parsed = self._parse(document, headers, strict=settings.api.strict, vocab_size=vocabulary_size)
        parts.dispatcher.model(parsed.model)
        if not caller.may_use(parsed.model):
            raise PermissionDenied(
                f"The key of `{caller.tenant}` does not have access to the model `{parsed.model}`.", param="model"
            )
        content_rule = None
        if pin_of(parsed, caller, settings) is None:
            content_rule = await parts.content_rules().match(parsed.body, unreadable=is_unreadable(parsed))
        admitted = admit(
            parsed,
            caller,
            settings,
            parts.experience[parsed.model],
            request_id=request_id,
            arrived_s=arrived_s,
            stay_with=parts.conversations.backend_for(caller.tenant, parsed.model, parsed.body),
            content_rule=content_rule,
            trace=trace,
        )
        if caller.is_limited:
            try:
                parts.rates.take(caller, admitted.features)
            except RateLimited as refusal:
                parts.door.count(refusal)
                raise
        return admitted, parsed.ignored

    async def _serve(self, admitted: Admitted, ignored: tuple[str, ...], send: Send) -> None:
        parts, call = self._parts, admitted.call
        if not admitted.cacheable:
            answer = await parts.dispatcher.answer(call, admitted.features)
            await self._send_answer(answer, admitted, ignored, send)
            return
        key = cache_key(call, admitted.features.residency)
        if (kept := parts.sharing.cached(key)) is not None:
            await self._send_kept(kept, admitted, ignored, send)
            return
        shared = parts.sharing.join(key, call, lambda: parts.dispatcher.answer(call, admitted.features))
        await self._send_answer(shared, admitted, ignored, send)

    async def _send_answer(
        self, answer: Answer | SharedAnswer, admitted: Admitted, ignored: tuple[str, ...], send: Send
    ) -> None:
        call = admitted.call
        rides_along = isinstance(answer, SharedAnswer) and not answer.owner
        ending, failure = Ending.CLIENT_CLOSED, None
        try:
            if isinstance(answer, SharedAnswer):
                await answer.began()
            journey = answer.journey
            if rides_along:
                journey = self._cache_journey(admitted, journey.served_model)
            headers = _headers(journey, ignored, call.request_id)
            async with aclosing(aiter(answer)) as chunks:  # type: ignore[type-var]
                if call.stream:
                    await send_stream(send, _STREAM_HEADERS + headers, chunks)
                else:
                    async for chunk in chunks:
                        await send_document(send, 200, _JSON_HEADERS + headers, chunk.data)
            ending = Ending.DONE
        except SpillwayError as error:
            ending, failure = ending_of(error), error
            raise
        except asyncio.CancelledError as cancelled:
            if (why := cancelled_by(cancelled)) is not None:
                ending, failure = ending_of(why), why
                answer.cut(why)
            raise
        finally:
            await answer.aclose()
            if rides_along:  # the call itself is reported by its dispatcher
                self._parts.report(self._cache_journey(admitted, None), ending, failure)

    async def _send_kept(self, kept: CachedAnswer, admitted: Admitted, ignored: tuple[str, ...], send: Send) -> None:
        call = admitted.call
        journey = self._cache_journey(admitted, kept.served_model)
        journey.usage = kept.usage
        journey.first_content_s = self._parts.clock() if call.stream else None
        headers = _headers(journey, ignored, call.request_id)
        data = kept.as_answer_to(call)
        if call.stream:
            await send_stream(send, _STREAM_HEADERS + headers, _one(Chunk(data)))
        else:
            await send_document(send, 200, _JSON_HEADERS + headers, data)
        self._parts.report(journey, Ending.DONE, None)

    def _cache_journey(self, admitted: Admitted, served_model: str | None) -> Journey:
        call = admitted.call
        return Journey(
            call,
            admitted.features,
            self._parts.dispatcher.model(call.model).model,
            decision=Decision(target=Target.CACHE, reason=Reason.CACHE_HIT),
            backend="cache",
            served_model=served_model,
        )


def _rest(error: SpillwayError, receive: Receive) -> Receive | None:
    """What brings the rest of a body that `error` left unread: its answer ends the connection."""
    unread = RequestTooLarge | RequestTimeout | ShuttingDown | HostExhausted | HostStrained
    return receive if isinstance(error, unread) else None


async def _one(chunk: Chunk) -> Any:
    yield chunk


def _headers(journey: Journey, ignored: tuple[str, ...], request_id: str) -> HeaderList:
    """Who served it and why."""
    assert journey.decision is not None
    headers = [
        (b"x-request-id", request_id.encode()),
        (b"x-spillway-backend", (journey.backend or "").encode("latin-1", "replace")),
        (b"x-spillway-model", (journey.served_model or "").encode("latin-1", "replace")),
        (b"x-spillway-reason", journey.decision.reason.encode()),
        (b"x-spillway-queue-ms", b"%.1f" % (journey.queue_s * 1000)),
    ]
    if journey.features.pinned_by is not None:
        headers.append((b"x-spillway-pinned-by", journey.features.pinned_by.encode()))
    if ignored:
        headers.append((b"x-ignored-params", ", ".join(ignored).encode("latin-1", "replace")))
    return headers
