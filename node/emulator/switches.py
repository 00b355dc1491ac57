"""Every way the emulator can misbehave, by name, and the draw that decides which of them hits a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Self


class Switch(StrEnum):
    """One misbehaviour each; `summary` says what a client sees.

    Those that refuse a call cost nothing. The others are billed for the tokens that were sent.
    """

    summary: str

    def __new__(cls, name: str, summary: str) -> Self:
        """A member whose value is `name`."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.summary = summary
        return member

    @classmethod
    def named(cls, name: str) -> Switch:
        """The switch called `name`. Raises `ValueError` when there is none."""
        for switch in cls:
            if switch.value == name:
                return switch
        raise ValueError(f"there is no switch {name!r}")

    # Refusals
    RATE_LIMIT = "rate_limit", "429 without any hint when to come back"
    RATE_LIMIT_SECONDS = "rate_limit_seconds", "429 with Retry-After: 7"
    RATE_LIMIT_DATE = "rate_limit_date", "429 with Retry-After as an HTTP date 7 s ahead"
    RATE_LIMIT_ZERO = "rate_limit_zero", "429 with Retry-After: 0"
    RATE_LIMIT_NEGATIVE = "rate_limit_negative", "429 with Retry-After: -5"
    RATE_LIMIT_HUGE = "rate_limit_huge", "429 with Retry-After: 9999"
    RATE_LIMIT_NONSENSE = "rate_limit_nonsense", "429 with Retry-After: abc"
    RATE_LIMIT_IN_BODY = "rate_limit_in_body", "429 whose only hint is error.retry_after 1.2 in the body"
    PAYMENT_REQUIRED = "payment_required", "402"
    INSUFFICIENT_QUOTA = "insufficient_quota", "429 with code insufficient_quota"
    UNAUTHORIZED = "unauthorized", "401 that quotes the key it was sent"
    FORBIDDEN = "forbidden", "403"
    BAD_REQUEST = "bad_request", "400 for a request that is fine"
    ERROR_500 = "error_500", "500 with an HTML body"
    ERROR_502 = "error_502", "502 with an HTML body"
    ERROR_503 = "error_503", "503 with an HTML body"
    ERROR_504 = "error_504", "504 with an HTML body"
    FLAPPING = "flapping", "503 with a JSON body; armed with probability 0.5 unless told otherwise"
    REDIRECT = "redirect", "301 to another host"
    GZIP_BOMB = "gzip_bomb", "200 with a small gzip body that unpacks to 100 MiB"
    RESET_ON_REUSE = "reset_on_reuse", "connection reset before any byte, only on a connection used before"

    # No answer
    SILENCE = "silence", "accepts the request and sends nothing, not even headers"
    HEADERS_THEN_HANG = "headers_then_hang", "200 and headers, then nothing"
    COMMENTS_ONLY = "comments_only", "200 and keep-alive comments for ever"

    # An answer that breaks off
    ERROR_IN_FIRST_EVENT = "error_in_first_event", "200 whose first event is an error"
    ERROR_MID_STREAM = "error_mid_stream", "an error event half way, then the end"
    STALL_MID_STREAM = "stall_mid_stream", "nothing more after half of the answer, connection open"
    RESET_MID_STREAM = "reset_mid_stream", "connection reset half way"
    CLOSE_MID_STREAM = "close_mid_stream", "connection closed half way, without the last HTTP chunk"
    EOF_WITHOUT_DONE = "eof_without_done", "a proper HTTP end half way, without finish_reason or [DONE]"
    EOF_MID_JSON = "eof_mid_json", "a proper HTTP end in the middle of an event"
    EOF_MID_UTF8 = "eof_mid_utf8", "a proper HTTP end in the middle of a character"

    # An answer in odd form
    INVALID_JSON = "invalid_json", "one event that is not JSON"
    WRONG_OBJECT = "wrong_object", "object is 'thing'"
    MISSING_CHOICES = "missing_choices", "no choices field"
    LONG_LINE = "long_line", "one event of 10 MB on one line"
    ENDLESS = "endless", "goes on past max_tokens for ever"
    EVENTS_AFTER_DONE = "events_after_done", "more text after [DONE]"
    CRLF = "crlf", "lines end in CR LF"
    CR = "cr", "lines end in CR"
    BOM = "bom", "starts with a byte order mark"
    SPLIT_UTF8 = "split_utf8", "multibyte characters split over two writes"
    WRONG_CONTENT_TYPE = "wrong_content_type", "a good body labelled text/html"
    SSE_FOR_JSON = "sse_for_json", "SSE in answer to a call that did not ask for it"
    JSON_FOR_STREAM = "json_for_stream", "one JSON document in answer to a streaming call"
    RESPONSES_SSE = "responses_sse", "SSE in the form of the Responses API, whatever was asked"

    # An answer that lies
    USAGE_MISSING = "usage_missing", "no usage"
    USAGE_ZERO = "usage_zero", "usage says 0 tokens"
    USAGE_NEGATIVE = "usage_negative", "usage says -1 tokens"
    USAGE_TENFOLD = "usage_tenfold", "usage says ten times the tokens"
    USAGE_STRING = "usage_string", "usage gives its numbers as strings"
    USAGE_EARLY = "usage_early", "usage arrives in an event of its own before the end of the text"
    USAGE_ON_CONTENT = "usage_on_content", "usage rides on the last event with text, with non-empty choices"
    WRONG_MODEL = "wrong_model", "echoes a model nobody asked for"
    DUPLICATE_IDS = "duplicate_ids", "every answer has the same id"
    CHANGING_IDS = "changing_ids", "every event of one answer has another id"
    FINISH_NULL = "finish_null", "finish_reason is never set"


def _default_probability(switch: Switch) -> float:
    return 0.5 if switch is Switch.FLAPPING else 1.0


@dataclass(slots=True)
class _Armed:
    probability: float
    remaining: int | None
    random: Random


class Switchboard:
    """The armed switches. At most one hits a call: the first, in the order they were armed, whose draw says so.

    Each switch draws from a generator of its own, seeded by the emulator's seed and its name, so the same calls in
    the same order meet the same faults.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._armed: dict[Switch, _Armed] = {}

    def arm(self, switch: Switch, *, probability: float | None = None, count: int | None = None) -> None:
        """Let `switch` hit calls with `probability` (0 to 1), at most `count` of them (None: until disarmed).

        Raises `ValueError` for a probability outside 0..1 or a count below 1.
        """
        chance = _default_probability(switch) if probability is None else probability
        if not 0.0 <= chance <= 1.0:
            raise ValueError(f"{switch}: probability must be between 0 and 1, not {chance}")
        if count is not None and count < 1:
            raise ValueError(f"{switch}: count must be at least 1, not {count}")
        self._armed[switch] = _Armed(chance, count, Random(f"{self._seed}/{switch}"))

    def disarm(self, switch: Switch | None = None) -> None:
        """Switch off one misbehaviour, or all of them."""
        if switch is None:
            self._armed.clear()
        else:
            self._armed.pop(switch, None)

    def replace(self, wanted: Mapping[str, Any]) -> None:
        """Set all switches from JSON: ``{"silence": true, "flapping": {"probability": 0.2, "count": 5}}``.

        Anything not named is off afterwards. Raises `ValueError` naming what is wrong, and then changes nothing.
        """
        board = Switchboard(self._seed)
        for name, setting in wanted.items():
            switch = Switch.named(name)
            if setting is False or setting is None:
                continue
            options = {} if setting is True else setting
            if not isinstance(options, dict) or not options.keys() <= {"probability", "count"}:
                raise ValueError(f'{name}: give true, false or {{"probability": 0..1, "count": n}}')
            probability, count = options.get("probability"), options.get("count")
            if isinstance(probability, bool) or not isinstance(probability, int | float | None):
                raise ValueError(f"{name}: probability must be a number")
            if isinstance(count, bool) or not isinstance(count, int | None):
                raise ValueError(f"{name}: count must be a whole number")
            board.arm(switch, probability=probability, count=count)
        self._armed = board._armed

    def draw(self, *, skip: Iterable[Switch] = ()) -> Switch | None:
        """The misbehaviour that hits the next call, if any; those in `skip` do not apply to it."""
        skipped = frozenset(skip)
        for switch, armed in list(self._armed.items()):
            if switch in skipped or armed.random.random() >= armed.probability:
                continue
            if armed.remaining is not None:
                armed.remaining -= 1
                if armed.remaining == 0:
                    del self._armed[switch]
            return switch
        return None

    def as_json(self) -> dict[str, Any]:
        """What is armed, and what there is."""
        return {
            "armed": {
                switch.value: {"probability": armed.probability, "count": armed.remaining}
                for switch, armed in self._armed.items()
            },
            "known": {switch.value: switch.summary for switch in Switch},
        }
