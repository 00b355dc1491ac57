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
from types import TracebackType
from typing import Final, Self, TextIO, TypeVar

_T = TypeVar("_T")
_REDRAW_S: Final = 0.2
_SAY_EVERY_S: Final = 10.0
_SHOWN_AFTER_S: Final = 1.0
_COLUMNS: Final = 100
_LINE: Final = "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left"
_LINE_WITHOUT_END: Final = "{desc}: {n_fmt}{unit} in {elapsed}, {rate_fmt}"


class Progress:
    """How far `what` is, for the length of a `with` block.

    `total` is how many there are, None where nobody knows; `unit` what is counted (``B`` is shown as MB, GB). `measure`
    is asked how many are done, from another thread, where whoever works cannot tell (a copy that a library makes).
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
        self._began_s = time.monotonic()
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
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._part_began_s = time.monotonic()

    def at(self, done: int, *, what: str | None = None) -> None:
        """So many are done, and this is what is worked on."""
        self._done = done
        if what is not None:
            self._what = what

    def advance(self, more: int) -> None:
        """So many more are done."""
        self._done += more

    def counting(self, items: Iterable[_T]) -> Iterator[_T]:
        """`items`, counted as they are taken."""
        for item in items:
            self._done += 1
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
                if self._terminal:
                    self._draw()
                else:
                    print(self._text(), file=self._stream, flush=True)

    def _draw(self) -> None:
        columns = shutil.get_terminal_size((_COLUMNS, 24)).columns - 1
        # Cut, and not wrapped: a second line could not be taken away again.
        print(f"\r\033[K{self._text(columns)[:columns]}", end="", file=self._stream, flush=True)
        self._is_drawn = True

    def _clear(self) -> None:
        if self._is_drawn:
            print("\r\033[K", end="", file=self._stream, flush=True)
            self._is_drawn = False

    def _text(self, columns: int = _COLUMNS) -> str:
        from tqdm import tqdm  # only where something is shown at all

        done = self._done if self._measure is None else self._measure()
        if not done:
            return f"{self._what}, {time.monotonic() - self._began_s:.0f} s so far"
        return str(
            tqdm.format_meter(
                done,
                None if self._total is None else max(self._total, done),
                time.monotonic() - self._part_began_s,
                ncols=columns,
                prefix=self._what,
                unit=self._unit if self._unit == "B" else f" {self._unit}",
                unit_scale=True,
                unit_divisor=1000,
                ascii=(self._stream.encoding or "").lower() not in ("utf-8", "utf8"),
                bar_format=None if self._terminal else _LINE if self._total else _LINE_WITHOUT_END,
            )
        )
