"""A cloud model as a `Backend`: one call out through the gate, its answer back in our form.

    bind()   a catalogue entry and a permit become a `CloudBackend`
    open()   send ─ status ─ SSE or JSON, whichever was asked and whichever came ─ chunks ─ usage

One attempt: retrying elsewhere, breakers and measuring are the dispatcher's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from node.backend import Call, Chunk, Kind
from node.catalogue import CloudEquivalent
from node.cloud import wire
from node.cloud.answer import Answer
from node.cloud.assemble import assemble
from node.cloud.config import Caps, ProviderConfig
from node.cloud.gate import EgressGate
from node.cloud.outbound import choices_asked, outbound_fields
from node.cloud.reader import AnswerReader
from node.cloud.sse_decoder import Event, SseDecoder, SseOverflow
from node.cloud.tally import Tally
from node.cloud.wire import Choice
from node.errors import UpstreamError, UpstreamTimeout, UpstreamTruncated
from node.money import Price, Usage
from node.routing.permit import EgressForbidden, EgressPermit
from node.sse import encode, frame, usage_object

_BYTES_PER_TOKEN: Final = 4
# How long the end of the HTTP body may lag behind [DONE]; waiting for it keeps the connection for the next call.
_DRAIN_S: Final = 0.05
# How long a provider may go on before it notices that nobody reads any more, and the least it generates meanwhile.
_UNSEEN_S: Final = 1.0
_UNSEEN_TOKENS: Final = 16
# Below this much time a pace says nothing.
_SHORTEST_S: Final = 0.05
_OBJECTS: Final = {
    (Kind.CHAT, True): "chat.completion.chunk",
    (Kind.CHAT, False): "chat.completion",
    (Kind.COMPLETION, True): "text_completion",
    (Kind.COMPLETION, False): "text_completion",
}


class CloudProvider:
    """One configured provider. `clock` is Unix time in seconds; it only dates a `Retry-After` given as a date."""

    def __init__(
        self, config: ProviderConfig, gate: EgressGate, clock: Callable[[], float], *, caps: Caps | None = None
    ) -> None:
        self.config = config
        self._gate = gate
        self._clock = clock
        self._caps = caps or Caps()

    def first_content_s(self, model: str) -> float:
        """How long a request may wait for its first content from `model`, over all attempts."""
        return self.config.clocks_for(model).first_content_s

    def bind(
        self,
        equivalent: CloudEquivalent,
        permit: EgressPermit,
        *,
        prompt_tokens_estimate: int | None = None,
        spent_s: float = 0.0,
    ) -> CloudBackend:
        """A backend for the one call that `permit` names.

        `prompt_tokens_estimate` is charged where the provider reports no usage; without it the prompt is taken
        at four bytes per token. `spent_s` is what earlier attempts took of the request's clocks for first content and
        for the whole. Raises `EgressForbidden` if the permit is for another provider or model, or the
        price is unknown.
        """
        if (equivalent.provider, equivalent.model) != (permit.provider, permit.model):
            raise EgressForbidden(f"the permit of {permit.request_id} is not for {equivalent.model}")
        if equivalent.provider != self.config.name or equivalent.price is None:
            raise EgressForbidden(f"{equivalent.model} is not to be had from {self.config.name} at a known price")
        return CloudBackend(
            self.config,
            self._gate,
            self._clock,
            self._caps,
            permit,
            equivalent.price,
            prompt_tokens_estimate,
            spent_s,
        )


class CloudBackend:
    """One call to one cloud model; opened once."""

    def __init__(
        self,
        config: ProviderConfig,
        gate: EgressGate,
        clock: Callable[[], float],
        caps: Caps,
        permit: EgressPermit,
        price: Price,
        prompt_tokens_estimate: int | None,
        spent_s: float,
    ) -> None:
        self._config = config
        self._gate = gate
        self._clock = clock
        self._caps = caps
        self._permit = permit
        self._price = price
        self._prompt_tokens_estimate = prompt_tokens_estimate
        self._clocks = config.clocks_for(permit.model)
        self._spent_s = spent_s
        self._tally: Tally | None = None
        self._streams = False
        self._was_left = False  # by us, while the provider had more to say
        self._first_content_s: float | None = None
        self._settled: Usage | None = None

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._config.name

    @property
    def served_model(self) -> str:
        """The provider's id of the model."""
        return self._permit.model

    def usage_so_far(self) -> Usage:
        """What the provider may bill by now: the final usage, or an estimate for an answer that was cut.

        Nothing before the request is out, nor for one that was refused or never answered on its connection.
        """
        if self._settled is not None:
            return self._settled
        return Usage(0, 0) if self._tally is None else self._tally.usage_if_cut(self._unseen_tokens(self._tally))

    def _unseen_tokens(self, tally: Tally) -> int:
        """What may have been generated beyond what has arrived, taken high: reconciling puts it right.

        Reading on until the provider says would be exact, and would pay for text that nobody reads.
        """
        if not self._was_left:
            return 0
        if not self._streams:
            return tally.max_completion_tokens  # of one document nothing is seen before its end
        if self._first_content_s is None:
            return _UNSEEN_TOKENS
        took_s = asyncio.get_running_loop().time() - self._first_content_s
        return max(_UNSEEN_TOKENS, math.ceil(tally.pieces * _UNSEEN_S / max(took_s, _SHORTEST_S)))

    async def open(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Send `call` and stream its answer. Closing it closes the provider's connection at once.

        Raises `UpstreamError` subclasses for everything the provider or the road to it does wrong, and
        `EgressForbidden`, before anything is sent, if the permit is for another request.
        """
        began_s = asyncio.get_running_loop().time() - self._spent_s
        self._streams = call.stream
        ends_at = began_s + self._clocks.total_s
        content_by = min(ends_at, began_s + self._clocks.first_content_s) if call.stream else ends_at
        answer = await self._send(call, content_by)
        try:
            tally = self._tally
            assert tally is not None
            tally.request_bytes = answer.request_bytes
            reader = AnswerReader(call, self._config, tally)
            try:
                if call.stream:
                    chunks = self._streamed(call, answer, reader, tally, content_by, ends_at)
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            yield chunk
                else:
                    yield await self._whole(call, answer, reader, tally, ends_at)
            except (GeneratorExit, asyncio.CancelledError):
                self._was_left = True
                raise
            finally:
                if reader.refused:
                    self._tally = None
        finally:
            await answer.aclose()

    async def _send(self, call: Call, content_by: float) -> Answer:
        self._tally = Tally(
            max_completion_tokens=choices_asked(call) * call.max_output_tokens,
            choices=choices_asked(call),
            prompt_estimate=lambda: self._guess_prompt_tokens(call),
            echo=call.body.get("echo") is True,
        )
        try:
            async with asyncio.timeout_at(content_by):
                answer = await self._gate.send(
                    self._permit,
                    request_id=call.request_id,
                    provider=self._config.name,
                    model=self._permit.model,
                    kind=call.kind,
                    fields=outbound_fields(call, self._config),
                    stream=call.stream,
                    traceparent=call.traceparent if self._config.trace_context else None,
                )
        except TimeoutError as error:
            raise self._too_late(call) from error
        except asyncio.CancelledError:
            self._was_left = True
            raise
        except (UpstreamError, EgressForbidden):
            self._tally = None
            raise
        if answer.status == 200 and not answer.compressed:
            return answer
        try:
            if answer.status == 200:
                raise UpstreamError(f"{self.name} compressed its answer though it was asked not to")
            self._tally = None
            raise await answer.failure(self._clock())
        finally:
            await answer.aclose()

    def _guess_prompt_tokens(self, call: Call) -> int:
        if self._prompt_tokens_estimate is not None:
            return self._prompt_tokens_estimate
        prompt = call.body.get("messages" if call.kind is Kind.CHAT else "prompt")
        return -(-len(encode({"": prompt})) // _BYTES_PER_TOKEN)

    def _too_late(self, call: Call, *, began: bool = False) -> UpstreamTimeout:
        if began:
            return UpstreamTimeout(f"{self.name} stopped sending in the middle of its answer")
        what = "any content" if call.stream else "its answer"
        return UpstreamTimeout(f"{self.name} did not send {what} in time")

    # One document ---------------------------------------------------------------------------------------------

    async def _whole(self, call: Call, answer: Answer, reader: AnswerReader, tally: Tally, ends_at: float) -> Chunk:
        try:
            async with asyncio.timeout_at(ends_at):
                body = await answer.read_all(self._caps.document_bytes)
        except TimeoutError as error:
            raise self._too_late(call) from error
        if _looks_like_json(body):
            choices = reader.document(body, streaming=False)
        else:
            choices = assemble(self._streamed_choices(body, reader), call.kind)
        usage = self._settled = tally.usage()
        data = encode(
            _head(call)
            | {
                "choices": msgspec.Raw(wire.encode_choices(choices)),
                "usage": self._usage_object(usage, tally),
            }
        )
        return Chunk(data, tally.content_bytes > 0, usage.completion_tokens, usage, reader.finish_reason)

    def _streamed_choices(self, body: bytes, reader: AnswerReader) -> Sequence[Choice]:
        decoder = self._decoder()
        choices: list[Choice] = []
        for event in self._decoded(decoder, body) + decoder.finish():
            if not reader.done:
                choices += reader.event(event)
        return choices + self._end(reader)

    # A stream -------------------------------------------------------------------------------------------------

    async def _streamed(
        self,
        call: Call,
        answer: Answer,
        reader: AnswerReader,
        tally: Tally,
        content_by: float,
        ends_at: float,
    ) -> AsyncGenerator[Chunk, None]:
        loop = asyncio.get_running_loop()
        opening = encode(_head(call))[:-1] + b',"choices":'
        decoder = self._decoder()
        silent_at = content_by
        received = await self._read(call, answer, silent_at, tally)
        if _looks_like_json(received):
            choices = await self._document(call, answer, reader, received, ends_at)
            data = frame(opening + wire.encode_choices(choices) + b"}")
            yield Chunk(data, tally.pieces > 0, tally.pieces, None, reader.finish_reason)
        while not reader.done:
            events = self._decoded(decoder, received) if received else decoder.finish()
            pieces = tally.pieces
            frames, error = _frames(events, reader, opening)
            if frames:
                yield Chunk(b"".join(frames), tally.pieces > pieces, tally.pieces, None, reader.finish_reason)
                if tally.pieces:
                    now_s = loop.time()
                    self._first_content_s = self._first_content_s or now_s
                    silent_at = min(ends_at, now_s + self._clocks.between_chunks_s)
            if error is not None:
                raise error
            if reader.done or not received:
                break
            received = await self._read(call, answer, silent_at, tally)
        yield await self._last_chunk(call, answer, reader, tally, opening)

    async def _last_chunk(
        self, call: Call, answer: Answer, reader: AnswerReader, tally: Tally, opening: bytes
    ) -> Chunk:
        ends = self._end(reader)
        usage = self._settled = tally.usage()
        data = frame(opening + wire.encode_choices(ends) + b"}") if ends else b""
        if call.include_usage:
            data += frame(encode(_head(call) | {"choices": (), "usage": self._usage_object(usage, tally)}))
        await self._drain(answer)
        return Chunk(data, False, usage.completion_tokens, usage, reader.finish_reason)

    async def _document(
        self, call: Call, answer: Answer, reader: AnswerReader, received: bytes, ends_at: float
    ) -> list[Choice]:
        try:
            async with asyncio.timeout_at(ends_at):
                body = await answer.read_all(self._caps.document_bytes, received)
        except TimeoutError as error:
            raise self._too_late(call) from error
        return reader.document(body, streaming=True)

    async def _read(self, call: Call, answer: Answer, silent_at: float, tally: Tally) -> bytes:
        try:
            async with asyncio.timeout_at(silent_at):
                return await answer.read()
        except TimeoutError as error:
            raise self._too_late(call, began=tally.pieces > 0) from error

    async def _drain(self, answer: Answer) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                while await answer.read():
                    pass
        except (TimeoutError, UpstreamError):
            return  # the answer is complete; only the connection is lost

    # Shared ---------------------------------------------------------------------------------------------------

    def _decoder(self) -> SseDecoder:
        caps = self._caps
        return SseDecoder(max_event_bytes=caps.event_bytes, max_stream_bytes=caps.stream_bytes, max_events=caps.events)

    def _decoded(self, decoder: SseDecoder, received: bytes) -> list[Event]:
        try:
            return decoder.feed(received)
        except SseOverflow as error:
            raise UpstreamTruncated(f"{self.name} sent more than fits in an answer") from error

    def _end(self, reader: AnswerReader) -> list[Choice]:
        """What is missing at the end of a stream. A body that ends without [DONE] is whole only if its choices are."""
        if not reader.done and not reader.complete:
            raise UpstreamTruncated(f"{self.name} ended its answer early")
        return reader.close()

    def _usage_object(self, usage: Usage, tally: Tally) -> dict[str, object]:
        return usage_object(usage, self._price.cost_nano_usd(usage), {} if usage.suspect else tally.details)


def _head(call: Call) -> dict[str, object]:
    return {
        "id": call.response_id,
        "object": _OBJECTS[call.kind, call.stream],
        "created": call.created_s,
        "model": call.model,
    }


def _frames(events: Sequence[Event], reader: AnswerReader, opening: bytes) -> tuple[list[bytes], UpstreamError | None]:
    """The frames that `events` make, up to the end of the answer or to what is wrong with it."""
    frames = []
    try:
        for event in events:
            if choices := reader.event(event):
                frames.append(frame(opening + wire.encode_choices(choices) + b"}"))
            if reader.done:
                break
    except UpstreamError as error:
        return frames, error
    return frames, None


def _looks_like_json(body: bytes) -> bool:
    """Whether a body that begins so is JSON rather than events, whatever its content type says."""
    return body[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
