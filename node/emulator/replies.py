"""What goes over the wire, and when, for a call that is answered: well, or as a switch says.

A `Draft` is the answer as timed writes; a switch is a function from draft to draft. Nothing here touches a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from typing import Any

from node.emulator.answers import Answer
from node.emulator.frames import DONE, Frames, encode, event, first_choice_only, responses_events
from node.emulator.requests import Ask
from node.emulator.switches import Switch

LONG_LINE_BYTES = 10_000_000
_EVENT_STREAM = "text/event-stream; charset=utf-8"
_JSON = "application/json"
_ERROR = {"error": {"type": "server_error", "message": "the emulated provider failed", "code": "internal_error"}}


class Ending(StrEnum):
    """What happens after the last write."""

    CLEAN = "clean"
    CLOSE = "close"
    RESET = "reset"
    HANG = "hang"


class State(StrEnum):
    """How a call ended, on the bill."""

    COMPLETED = "completed"
    CLIENT_CLOSED = "client_closed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes to send `at_s` seconds after the request arrived, and the tokens in them."""

    at_s: float
    data: bytes
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds to the first token, and from each token to the next."""

    ttft_s: float
    pace_s: float

    def tokens_by(self, elapsed_s: float, answer: Answer) -> int:
        """How many tokens exist `elapsed_s` after arrival, for a client that left before it was sent any."""
        if elapsed_s < self.ttft_s:
            return 0
        steps = answer.steps if self.pace_s <= 0 else 1 + int((elapsed_s - self.ttft_s) / self.pace_s)
        return sum(min(steps, len(choice.pieces)) for choice in answer.choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An answer as timed writes. `again` is sent for ever after them, each so many seconds after the one before.

    `declared_length` is the Content-Length; None means chunked.
    """

    head: tuple[Write, ...]
    content: tuple[Write, ...]
    tail: tuple[Write, ...]
    streamed: bool
    content_type: str
    ending: Ending = Ending.CLEAN
    again: tuple[bytes, float] | None = None
    state: State = State.COMPLETED
    declared_length: int | None = None

    @property
    def writes(self) -> tuple[Write, ...]:
        """Everything in order."""
        return tuple(chain(self.head, self.content, self.tail))

    @property
    def last_at_s(self) -> float:
        """When the last piece of content goes out."""
        return self.content[-1].at_s if self.content else 0.0

    def half(self) -> Draft:
        """Only the first half of the content, and no proper end."""
        kept = self.content[: max(1, len(self.content) // 2)]
        return replace(self, content=kept, tail=(), state=State.ERROR)

    def then(self, data: bytes) -> Draft:
        """With one more write right after the content."""
        return replace(self, content=(*self.content, Write(self.last_at_s, data)))

    def reframed(self, change: Callable[[bytes], bytes]) -> Draft:
        """With every write's bytes changed."""

        def all_of(writes: tuple[Write, ...]) -> tuple[Write, ...]:
            return tuple(replace(write, data=change(write.data)) for write in writes)

        return replace(self, head=all_of(self.head), content=all_of(self.content), tail=all_of(self.tail))


STREAM_ONLY = frozenset(
    {
        Switch.EOF_WITHOUT_DONE,
        Switch.ERROR_MID_STREAM,
        Switch.CRLF,
        Switch.CR,
        Switch.USAGE_EARLY,
        Switch.USAGE_ON_CONTENT,
        Switch.CHANGING_IDS,
        Switch.JSON_FOR_STREAM,
    }
)
"""Switches that mean nothing to a call without streaming; it is answered as if they were off."""

WHOLE_ONLY = frozenset({Switch.SSE_FOR_JSON})
"""The same for streaming calls."""


def compose(
    ask: Ask,
    answer: Answer,
    frames: Frames,
    timing: Timing,
    usage: Mapping[str, Any],
    switch: Switch | None,
    keepalive_s: float,
) -> Draft:
    """The reply to `ask`, spoilt by `switch` if there is one."""
    if switch in _TUNE:
        frames = replace(frames, **_TUNE[switch])
    told = _USAGE[switch](dict(usage)) if switch in _USAGE else usage
    if switch is Switch.RESPONSES_SSE:
        return _responses(first_choice_only(answer), frames, timing)
    if switch is Switch.SSE_FOR_JSON or (ask.stream and switch is not Switch.JSON_FOR_STREAM):
        wanted = ask.include_usage or not ask.stream
        draft = _stream(answer, frames, timing, told if wanted else None)
        if switch in _STREAM_USAGE and wanted:
            return _STREAM_USAGE[switch](draft, frames, usage)
    else:
        draft = _document(answer, frames, timing, told, spoilt=switch is not None)
    if switch in (Switch.SILENCE, Switch.HEADERS_THEN_HANG, Switch.COMMENTS_ONLY):
        return _nothing(draft, keepalive_s if switch is Switch.COMMENTS_ONLY else None)
    return _SPOIL[switch](draft) if switch in _SPOIL else draft


def _stream(answer: Answer, frames: Frames, timing: Timing, usage: Mapping[str, Any] | None) -> Draft:
    content = tuple(
        Write(timing.ttft_s + step * timing.pace_s, data, tokens)
        for step, (data, tokens) in enumerate(frames.steps(answer))
    )
    # A provider's first event carries a role and no text, and comes before there is a token.
    head = (Write(timing.ttft_s / 2, frames.role(answer)),) if frames.chat else ()
    end_s = content[-1].at_s
    tail = (Write(end_s, frames.finish(answer) + frames.usage(usage) + DONE),)
    return Draft(head=head, content=content, tail=tail, streamed=True, content_type=_EVENT_STREAM)


def _document(
    answer: Answer, frames: Frames, timing: Timing, usage: Mapping[str, Any] | None, *, spoilt: bool
) -> Draft:
    done_s = timing.ttft_s + (answer.steps - 1) * timing.pace_s
    data = frames.document(answer, usage, round(done_s * 1000))
    middle = len(data) // 2
    halves = (Write(done_s, data[:middle], answer.completion_tokens), Write(done_s, data[middle:]))
    plain = (Write(done_s, data, answer.completion_tokens),)
    return Draft(
        head=(),
        content=halves if spoilt else plain,
        tail=(),
        streamed=False,
        content_type=_JSON,
        declared_length=None if spoilt else len(data),
    )


def _responses(answer: Answer, frames: Frames, timing: Timing) -> Draft:
    events = responses_events(frames, answer)
    writes = tuple(
        Write(timing.ttft_s + max(0, index - 1) * timing.pace_s, data, tokens)
        for index, (data, tokens) in enumerate(events)
    )
    return Draft(head=(), content=writes[:-1], tail=writes[-1:], streamed=True, content_type=_EVENT_STREAM)


def _nothing(draft: Draft, keepalive_s: float | None) -> Draft:
    comment = b": keep-alive\n\n" if draft.streamed else b" "
    return replace(
        draft,
        head=(),
        content=(),
        tail=(),
        ending=Ending.HANG,
        again=None if keepalive_s is None else (comment, keepalive_s),
        state=State.ERROR,
    )


def _error_first(draft: Draft) -> Draft:
    data = event(_ERROR) if draft.streamed else encode(_ERROR)
    first_s = draft.content[0].at_s
    return replace(draft, head=(), content=(Write(first_s, data),), tail=(), state=State.ERROR)


def _cut_in_event(draft: Draft) -> Draft:
    half = draft.half()
    following = draft.writes[len(draft.head) + len(half.content)].data
    return half.then(following[: len(following) // 2])


def _cut_in_character(draft: Draft) -> Draft:
    kept: list[Write] = []
    for write in draft.content:
        at = _first_multibyte(write.data)
        if at is not None:
            kept.append(replace(write, data=write.data[: at + 1]))
            break
        kept.append(write)
    else:
        kept.append(Write(draft.last_at_s, b'data: {"choices":[{"index":0,"delta":{"content":"caf\xc3'))
    return replace(draft, content=tuple(kept), tail=(), state=State.ERROR)


def _first_multibyte(data: bytes) -> int | None:
    return next((at for at, byte in enumerate(data) if byte >= 0xC0), None)


def _split_characters(draft: Draft) -> Draft:
    writes: list[Write] = []
    for index, write in enumerate(draft.content):
        at = _first_multibyte(write.data)
        if at is None:
            writes.append(write)
            continue
        next_s = draft.content[index + 1].at_s if index + 1 < len(draft.content) else write.at_s
        writes.append(Write(write.at_s, write.data[: at + 1], write.tokens))
        writes.append(Write((write.at_s + next_s) / 2, write.data[at + 1 :]))
    return replace(draft, content=tuple(writes))


def _invalid_json(draft: Draft) -> Draft:
    if not draft.streamed:
        return replace(draft, content=(replace(draft.content[0], data=b'{"id": oops}'),), tail=())
    half = len(draft.content) // 2
    bad = Write(draft.content[half].at_s, b'data: {"id": oops}\n\n')
    return replace(draft, content=(*draft.content[:half], bad, *draft.content[half:]))


def _long_line(draft: Draft) -> Draft:
    if not draft.streamed:
        first, *rest = draft.content
        return replace(draft, content=(replace(first, data=b" " * LONG_LINE_BYTES + first.data), *rest))
    template = event({"choices": [{"index": 0, "delta": {"content": "@"}, "finish_reason": None}]})
    return draft.then(template.replace(b"@", b"x" * LONG_LINE_BYTES))


def _endless(draft: Draft) -> Draft:
    pace_s = 0.005
    if len(draft.content) > 1 and draft.streamed:
        pace_s = max(0.001, draft.content[1].at_s - draft.content[0].at_s)
    more = draft.content[-1].data if draft.streamed else b" "
    content = draft.content if draft.streamed else draft.content[:1]
    return replace(draft, content=content, tail=(), again=(more, pace_s), ending=Ending.HANG, state=State.ERROR)


def _after_done(draft: Draft) -> Draft:
    more = draft.content[-1].data if draft.streamed else b'\n{"more":true}'
    return replace(draft, tail=(*draft.tail, Write(draft.last_at_s, more)))


def _byte_order_mark(draft: Draft) -> Draft:
    first, *rest = draft.writes
    marked = replace(first, data=b"\xef\xbb\xbf" + first.data)
    return replace(draft, head=(), content=(marked, *rest), tail=())


def _usage_early(draft: Draft, frames: Frames, usage: Mapping[str, Any]) -> Draft:
    half = len(draft.content) // 2
    early = Write(draft.content[half].at_s, frames.usage(usage))
    return replace(draft, content=(*draft.content[:half], early, *draft.content[half:]))


def _usage_on_content(draft: Draft, frames: Frames, usage: Mapping[str, Any]) -> Draft:
    return draft.then(frames.text_with_usage(" ", usage))


_TUNE: Mapping[Switch | None, dict[str, Any]] = {
    Switch.WRONG_MODEL: {"model": "gpt-nonesuch-0"},
    Switch.DUPLICATE_IDS: {"id": "chatcmpl-duplicate"},
    Switch.CHANGING_IDS: {"changing_ids": True},
    Switch.FINISH_NULL: {"with_finish": False},
    Switch.WRONG_OBJECT: {"object": "thing"},
    Switch.MISSING_CHOICES: {"with_choices": False},
}

_USAGE: Mapping[Switch | None, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    Switch.USAGE_MISSING: lambda usage: None,
    Switch.USAGE_ZERO: lambda usage: dict.fromkeys(usage, 0),
    Switch.USAGE_NEGATIVE: lambda usage: dict.fromkeys(usage, -1),
    Switch.USAGE_TENFOLD: lambda usage: {name: 10 * value for name, value in usage.items()},
    Switch.USAGE_STRING: lambda usage: {name: str(value) for name, value in usage.items()},
    Switch.USAGE_EARLY: lambda usage: None,
    Switch.USAGE_ON_CONTENT: lambda usage: None,
}

_STREAM_USAGE: Mapping[Switch | None, Callable[[Draft, Frames, Mapping[str, Any]], Draft]] = {
    Switch.USAGE_EARLY: _usage_early,
    Switch.USAGE_ON_CONTENT: _usage_on_content,
}

_SPOIL: Mapping[Switch | None, Callable[[Draft], Draft]] = {
    Switch.ERROR_IN_FIRST_EVENT: _error_first,
    Switch.ERROR_MID_STREAM: lambda draft: draft.half().then(event(_ERROR)),
    Switch.STALL_MID_STREAM: lambda draft: replace(draft.half(), ending=Ending.HANG),
    Switch.RESET_MID_STREAM: lambda draft: replace(draft.half(), ending=Ending.RESET),
    Switch.CLOSE_MID_STREAM: lambda draft: replace(draft.half(), ending=Ending.CLOSE),
    Switch.EOF_WITHOUT_DONE: lambda draft: draft.half(),
    Switch.EOF_MID_JSON: _cut_in_event,
    Switch.EOF_MID_UTF8: _cut_in_character,
    Switch.INVALID_JSON: _invalid_json,
    Switch.LONG_LINE: _long_line,
    Switch.ENDLESS: _endless,
    Switch.EVENTS_AFTER_DONE: _after_done,
    Switch.CRLF: lambda draft: draft.reframed(lambda data: data.replace(b"\n", b"\r\n")),
    Switch.CR: lambda draft: draft.reframed(lambda data: data.replace(b"\n", b"\r")),
    Switch.BOM: _byte_order_mark,
    Switch.SPLIT_UTF8: _split_characters,
    Switch.WRONG_CONTENT_TYPE: lambda draft: replace(draft, content_type="text/html; charset=utf-8"),
}
