"""Server-sent events come out the same however their bytes arrive."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cloud.sse_decoder import Event, SseDecoder, SseOverflow


def decoder(**caps: int) -> SseDecoder:
    return SseDecoder(**({"max_event_bytes": 10_000, "max_stream_bytes": 100_000, "max_events": 1000} | caps))


def decode(*pieces: bytes) -> list[Event]:
    reading = decoder()
    events = [event for piece in pieces for event in reading.feed(piece)]
    return events + reading.finish()


lines = st.one_of(
    st.sampled_from([b"data: a", b"data:b", b"data", b"data:", b": note", b":", b"event: error", b"id: 7", b"", b"da"]),
    st.binary(max_size=12).map(lambda raw: b"data: " + raw.replace(b"\r", b"").replace(b"\n", b"")),
    st.text(max_size=6).map(lambda text: b"data: " + text.encode().replace(b"\r", b"").replace(b"\n", b"")),
)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(
    bom=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    parts=st.lists(st.tuples(lines, line_ends), max_size=20),
    cuts=st.lists(st.integers(0, 400), max_size=20),
)
def test_any_split_of_the_bytes_gives_the_same_events(
    bom: bytes, parts: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    whole = bom + b"".join(line + end for line, end in parts)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    assert decode(*pieces) == decode(whole)
    assert decode(*[whole[i : i + 1] for i in range(len(whole))]) == decode(whole)


@given(
    texts=st.lists(
        st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), min_size=1, max_size=3), max_size=5
    ),
    end=line_ends,
)
def test_what_was_written_is_read(texts: list[list[str]], end: bytes) -> None:
    whole = b"".join(b"".join(b"data: " + line.encode() + end for line in event) + end for event in texts)
    assert decode(whole) == [Event("\n".join(event).encode()) for event in texts]


def test_space_after_the_colon_is_optional_and_only_one_is_dropped() -> None:
    assert decode(b"data:a\n\ndata: b\n\ndata:  c\n\n") == [Event(b"a"), Event(b"b"), Event(b" c")]


def test_event_types_belong_to_one_event() -> None:
    assert decode(b"event: error\ndata: a\n\ndata: b\n\nevent: x\n\ndata: c\n\n") == [
        Event(b"a", b"error"),
        Event(b"b"),
        Event(b"c"),
    ]


def test_byte_order_mark_is_dropped_only_at_the_start() -> None:
    assert decode(b"\xef", b"\xbb", b"\xbfdata: a\n\n", b"data: \xef\xbb\xbfb\n\n") == [
        Event(b"a"),
        Event(b"\xef\xbb\xbfb"),
    ]


def test_last_event_needs_no_blank_line() -> None:
    assert decode(b"data: [DONE]") == [Event(b"[DONE]")]
    assert decode(b"data: [DONE]\r") == [Event(b"[DONE]")]


@pytest.mark.parametrize(
    ("caps", "stream"),
    [
        ({"max_event_bytes": 10}, b"data: " + b"x" * 20),
        ({"max_event_bytes": 10}, b"data: xxxxxx\ndata: xxxxxx\n"),
        ({"max_event_bytes": 10}, b": " + b"x" * 20),
        ({"max_stream_bytes": 10}, b"\n" * 11),
        ({"max_events": 2}, b"data: x\n\n" * 3),
    ],
    ids=["line", "event", "comment", "stream", "events"],
)
def test_caps_hold(caps: dict[str, int], stream: bytes) -> None:
    reading = decoder(**caps)
    with pytest.raises(SseOverflow):
        reading.feed(stream)
