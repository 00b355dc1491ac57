"""A tolerant decoder for server-sent events, over bytes in any split.

Follows the WHATWG standard's "Interpreting an event stream" (line ends LF, CRLF or CR, an optional byte order
mark, comments, several data lines per event, an optional space after the colon), with two additions: hard caps,
and an event that the end of the stream leaves unfinished is given out, since providers forget the last blank line.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_BOM: Final = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its `data` lines joined by LF, and its type (``b""`` for the default)."""

    data: bytes
    type: bytes = b""


class SseOverflow(Exception):
    """A line, an event or the whole stream is beyond its cap."""


class SseDecoder:
    """Bytes in, events out. `feed()` takes whatever has arrived, `finish()` says that nothing more will.

    Both raise `SseOverflow` when a line or event holds more than `max_event_bytes`, or the stream more than
    `max_stream_bytes` or `max_events`.
    """

    __slots__ = (
        "_data",
        "_data_bytes",
        "_events",
        "_line",
        "_max_event_bytes",
        "_max_events",
        "_max_stream_bytes",
        "_skip_lf",
        "_start",
        "_stream_bytes",
        "_type",
    )

    def __init__(self, *, max_event_bytes: int, max_stream_bytes: int, max_events: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._max_stream_bytes = max_stream_bytes
        self._max_events = max_events
        self._stream_bytes = 0
        self._events = 0
        self._start = True
        self._skip_lf = False
        self._line = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._type = b""

    def feed(self, received: bytes) -> list[Event]:
        """The events that `received` completes, often none or several."""
        self._stream_bytes += len(received)
        if self._stream_bytes > self._max_stream_bytes:
            raise SseOverflow("stream too long")
        text = self._line + received
        if self._start:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._line = text
                return []
            self._start = False
            text = text.removeprefix(_BOM)
            self._line = b""
        return self._lines(self._unify_line_ends(text))

    def finish(self) -> list[Event]:
        """The event left open at the end of the stream, if it has any data."""
        last, self._line = self._line, b""
        if last:
            self._take_line(last)
        event = self._take_event()
        return [] if event is None else [event]

    def _unify_line_ends(self, text: bytes) -> bytes:
        """`text` with LF for every line end. A CR at its end counts at once; an LF that follows it later is dropped."""
        if self._skip_lf and text:
            text = text.removeprefix(b"\n")
            self._skip_lf = False
        if b"\r" in text:
            self._skip_lf = text.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return text

    def _lines(self, text: bytes) -> list[Event]:
        lines = text.split(b"\n")
        self._line = lines.pop()
        if len(self._line) > self._max_event_bytes:
            raise SseOverflow("line too long")
        events: list[Event] = []
        for line in lines:
            if line:
                self._take_line(line)
            else:
                event = self._take_event()
                if event is not None:
                    events.append(event)
        return events

    def _take_line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._max_event_bytes:
                raise SseOverflow("event too long")
            self._data.append(value)
        elif name == b"event":
            self._type = value.removeprefix(b" ")

    def _take_event(self) -> Event | None:
        data, kind = self._data, self._type
        self._data, self._data_bytes, self._type = [], 0, b""
        if not data:
            return None
        self._events += 1
        if self._events > self._max_events:
            raise SseOverflow("too many events")
        return Event(data[0] if len(data) == 1 else b"\n".join(data), kind)
