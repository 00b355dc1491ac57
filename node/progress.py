"""A sign of life for whatever takes more than a moment, on standard error: never where output or JSON goes.

On a terminal one line that is redrawn, with a bar, count, rate and the time left where the end is known, and that is
gone when it is done. Elsewhere (a log, a pipe) a line every ten seconds. What takes under a second is not shown at all.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self, TextIO, TypeVar

_T = TypeVar("_T")
_REDRAW_S: Final = 0.2
_SAY_EVERY_S: Final = 10.0
_SHOWN_AFTER_S: Final = 1.0
_COLUMNS: Final = 100
_BAR_COLUMNS: Final = 30


@dataclass(frozen=True, slots=True)
class _Part:
    what: str
    total: int | None
    unit: str
    began_s: float


class Progress:
    """How far `what` is, for the length of a `with` block.

    `total` is how many there are, None where nobody knows; `unit` what is counted. `measure`
    is asked how many are done, from another thread, where whoever works cannot tell (a copy that a library makes). Once
    it raises `OSError` (what it looked at is gone) nothing is shown any more; whoever works will hear of it.
    `bar` false: lines on a terminal too, for a program that prints meanwhile.
    """

    def __init__(
        self,
        what: str,
        *,
        total: int | None = None,
        unit: str = "rows",
        measure: Callable[[], int] | None = None,
        stream: TextIO | None = None,
        bar: bool = True,
        shown_after_s: float = _SHOWN_AFTER_S,
        say_every_s: float = _SAY_EVERY_S,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = bar and self._stream.isatty()
        self._first_s, self._then_s = (shown_after_s, _REDRAW_S) if self._terminal else (say_every_s, say_every_s)
        self._measure = measure
        self._ended = threading.Event()
        self._drawing = threading.Lock()
        self._is_drawn = False
        self._thread = threading.Thread(target=self._keep_telling, name="progress", daemon=True)
        self.now(what, total=total, unit=unit)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with self._drawing:
            self._clear()

    def now(self, what: str, *, total: int | None = None, unit: str = "rows") -> None:
        """Another part begins, counted anew."""
        # In one piece, because another thread reads it: never the count of one part with the total of the next.
        self._at = (0, _Part(what, total, unit, time.monotonic()))

    def is_at(self, what: str) -> None:
        """The same part goes on, with something else in it."""
        done, part = self._at
        self._at = (done, replace(part, what=what))

    def at(self, done: int) -> None:
        """So many are done."""
        self._at = (done, self._at[1])

    def advance(self, more: int) -> None:
        """So many more are done."""
        done, part = self._at
        self._at = (done + more, part)

    def counting(self, items: Iterable[_T]) -> Iterator[_T]:
        """`items`, counted as they are taken."""
        for item in items:
            done, part = self._at
            self._at = (done + 1, part)
            yield item

    def print(self, text: str, stream: TextIO | None = None) -> None:
        """Print a line that stays, to standard output unless told otherwise, and not into what is drawn."""
        with self._drawing:
            self._clear()
            print(text, file=stream, flush=True)

    def _keep_telling(self) -> None:
        wait_s = self._first_s
        while not self._ended.wait(wait_s):
            wait_s = self._then_s
            with self._drawing:
                try:
                    done, part = self._at
                    if self._measure is not None:
                        done = self._measure()
                except OSError:
                    self._clear()
                    return
                if self._terminal:
                    self._draw(done, part)
                else:
                    print(self._text(done, part), file=self._stream, flush=True)

    def _draw(self, done: int, part: _Part) -> None:
        columns = shutil.get_terminal_size((_COLUMNS, 24)).columns - 1
        # Cut, and not wrapped: a second line could not be taken away again.
        print(f"\r\033[K{self._text(done, part, columns)[:columns]}", end="", file=self._stream, flush=True)
        self._is_drawn = True

    def _clear(self) -> None:
        if self._is_drawn:
            print("\r\033[K", end="", file=self._stream, flush=True)
            self._is_drawn = False

    def _text(self, done: int, part: _Part, columns: int = _COLUMNS) -> str:
        passed_s = time.monotonic() - part.began_s
        if not done:
            return f"{part.what}, {passed_s:.0f} s so far"
        rate = done / passed_s
        if not part.total or done > part.total:  # or it grows while it is copied
            return f"{part.what}: {_count(done, part.unit)} in {_time(passed_s)}, {_count(rate, part.unit)}/s"
        left = f"{_time((part.total - done) / rate)} left"
        if part.unit == "%":
            told = left
        else:
            of = _count(part.total, part.unit)
            told = f"{_count(done, part.unit)} of {of}, {_count(rate, part.unit)}/s, {left}"
        share = done / part.total
        bar = ""
        if self._terminal:
            width = max(0, min(_BAR_COLUMNS, columns - len(part.what) - len(told) - 10))
            full = round(share * width)
            bar = f" [{'#' * full}{'.' * (width - full)}]" if width else ""
        return f"{part.what}:{bar} {share:.0%}, {told}"


def _count(value: float, unit: str) -> str:
    """``450k rows``, ``1.2 MB``: three digits are enough to see it move."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5 or prefix == "G":
            break
        value /= 1000
    digits = f"{value:.0f}" if not prefix and value == int(value) else f"{value:.3g}"
    return f"{digits} {prefix}{unit}" if unit == "B" else f"{digits}{prefix} {unit}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
