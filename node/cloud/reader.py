"""Events and documents in, tidied choices out: one reading of an answer, whichever form it comes in."""

from __future__ import annotations

from typing import Final

import msgspec

from node.backend import Call
from node.cloud import responses, wire
from node.cloud.config import ProviderConfig
from node.cloud.errors import from_complaint, read_complaint
from node.cloud.sse_decoder import Event
from node.cloud.tally import Tally
from node.cloud.wire import Choice, Document, Malformed
from node.errors import UpstreamError, UpstreamTruncated

_PIECES_SLACK: Final = 64


class AnswerReader:
    """Reads one answer of one provider.

    `done` is true once the answer said it was over, `unfinished()` which choices never did. Raises
    `UpstreamTruncated` for what cannot be read and for a stream that goes on well past the output cap (twice it:
    some relays cut tokens in pieces), and what `from_complaint` makes of an error document or event; then
    `refused` is true if nothing had been generated before.
    """

    def __init__(self, call: Call, config: ProviderConfig, tally: Tally) -> None:
        self._kind = call.kind
        self._config = config
        self._tally = tally
        self._max_pieces = 2 * tally.max_completion_tokens + _PIECES_SLACK
        self._finish: dict[int, str | None] = {}
        self._calls_tools: set[int] = set()
        self.done = False
        self.refused = False

    def event(self, event: Event) -> list[Choice]:
        """The choices one event brings, ready to be streamed; none for usage, comments in JSON and the end."""
        if event.data.strip() == b"[DONE]":
            self.done = True
            return []
        document = self._decode(event.data)
        if event.type == b"error" and document.error is None:
            document.type = "error"
        return self._choices(document, streaming=True)

    def document(self, data: bytes, *, streaming: bool) -> list[Choice]:
        """All choices of an answer that came as one JSON document."""
        choices = self._choices(self._decode(data.removeprefix(b"\xef\xbb\xbf")), streaming=streaming)
        if not choices:
            raise UpstreamTruncated(f"{self._config.name} answered without any choice")
        self.done = True
        return choices

    @property
    def complete(self) -> bool:
        """Whether there is an answer and each of its choices has come to its end."""
        return bool(self._finish) and None not in self._finish.values()

    @property
    def finish_reason(self) -> str | None:
        """How the first choice ended."""
        return self._finish.get(0)

    def close(self) -> list[Choice]:
        """The end of every choice that was not told its own, once the answer is over.

        Raises `UpstreamTruncated` if there never was a choice.
        """
        if not self._finish:
            raise UpstreamTruncated(f"{self._config.name} answered without any choice")
        choices = []
        for index, finish in self._finish.items():
            if finish is None:
                reason = "tool_calls" if index in self._calls_tools else "stop"
                choice = Choice(index=index, finish_reason=reason)
                wire.tidy(choice, self._kind, streaming=True)
                self._finish[index] = reason
                choices.append(choice)
        return choices

    def _decode(self, data: bytes) -> Document:
        try:
            return wire.decode(data)
        except Malformed as error:
            raise UpstreamTruncated(f"{self._config.name} sent something that is not an OpenAI answer") from error

    def _choices(self, document: Document, *, streaming: bool) -> list[Choice]:
        if document.error:
            raise self._complaint({"error": document.error})
        choices = document.choices
        if choices is None:
            choices = self._other(document)
        elif document.usage is not None:
            self._tally.report(document.usage)
        for choice in choices:
            self._take(choice, streaming=streaming)
        return choices

    def _take(self, choice: Choice, *, streaming: bool) -> None:
        wire.tidy(choice, self._kind, streaming=streaming)
        self._tally.add(wire.content_bytes(choice))
        if self._tally.pieces > self._max_pieces:
            raise UpstreamTruncated(f"{self._config.name} went on far past max_tokens")
        message = choice.delta or choice.message
        if message and message.tool_calls:
            self._calls_tools.add(choice.index)
        if not streaming and choice.finish_reason is None:
            choice.finish_reason = "tool_calls" if choice.index in self._calls_tools else "stop"
        if choice.finish_reason is not None or choice.index not in self._finish:
            self._finish[choice.index] = choice.finish_reason

    def _other(self, document: Document) -> list[Choice]:
        """A document without choices: of the Responses API, only usage, or nothing we know."""
        kind = document.type if isinstance(document.type, str) else None
        if kind in responses.FAILURES:
            raise self._complaint(document.response or msgspec.to_builtins(document))
        whole = document.response if isinstance(document.response, dict) else None
        if isinstance(document.output, list):
            whole = msgspec.to_builtins(document)
        if whole is not None and (kind in responses.ENDINGS or document.output is not None):
            self.done = True
            if whole.get("usage") is not None:
                self._tally.report(whole["usage"])
            return [responses.closing_choice(whole, text_seen=self._tally.pieces > 0)]
        if document.usage is not None:
            self._tally.report(document.usage)
            return []
        if kind is None:
            raise UpstreamTruncated(f"{self._config.name} sent a chunk without choices")
        choice = responses.delta_choice(kind, document.delta)
        return [] if choice is None else [choice]

    def _complaint(self, document: object) -> UpstreamError:
        self.refused = self._tally.pieces == 0
        return from_complaint(200, read_complaint(document), self._config.name, api_key=self._config.api_key)
