"""Logging that never makes anybody wait: a bounded queue, a thread that writes, and a count of what did not fit."""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import Final

_MOST_LINES: Final = 10_000
_FLUSH_WITHIN_S: Final = 1.0
_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_STDERR: Final = 2


class BoundedHandler(logging.Handler):
    """Hands each line to a thread, which writes it to the descriptor `fd`.

    Whoever logs pays for formatting and nothing else. When `fd` does not take what it is given (a full disk, a pipe
    that nobody reads, a terminal that is gone), at most `most_lines` wait; further ones are dropped and counted, and
    the count is written with the next line that gets through. Not through `sys.stderr`: the interpreter waits for its
    lock when it ends, and the thread may hold it for ever.
    """

    def __init__(self, fd: int = _STDERR, *, most_lines: int = _MOST_LINES) -> None:
        super().__init__()
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(most_lines)
        self._ended = threading.Event()
        self.dropped = 0
        self._told = 0
        threading.Thread(target=self._write_all, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or drop it."""
        try:
            line = self.format(record).encode("utf-8", "replace") + b"\n"
        except (TypeError, ValueError, KeyError):  # arguments that do not fit their text
            self.handleError(record)
            return
        self._put(line)

    def close(self) -> None:
        """Write what is queued, if that takes no longer than a second."""
        self._put(None)
        self._ended.wait(_FLUSH_WITHIN_S)
        super().close()

    def _put(self, line: bytes | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            lost = self.dropped - self._told
            if lost and self._write(b"%d log lines were lost\n" % lost):
                self._told += lost
            if not self._write(line):
                self.dropped += 1
        self._ended.set()

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            return False  # there is nowhere left to say so
        return True


def set_up() -> BoundedHandler:
    """Send everything that is logged in this process through one `BoundedHandler`; returns it."""
    handler = BoundedHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return handler


def say(text: str) -> None:
    """Print `text` to standard output, if it takes it: for what a person who starts the node reads."""
    try:
        os.write(1, text.encode("utf-8", "replace") + b"\n")
    except OSError:
        logging.getLogger("spillway").info("%s", text)
