"""Logging that never makes anybody wait: a bounded queue, a thread that writes, and a count of what did not fit."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

_MOST_LINES: Final = 10_000
_FLUSH_WITHIN_S: Final = 1.0
_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ENGINE_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s (%(processName)s): %(message)s"
_ENGINE_CONFIG: Final = "VLLM_LOGGING_CONFIG_PATH"
_STDERR: Final = 2


class BoundedHandler(logging.Handler):
    """Hands each line to a thread, which writes it to the descriptor `fd`.

    Whoever logs pays for formatting and nothing else. When `fd` does not take what it is given (a full disk, a pipe
    that nobody reads, a terminal that is gone), at most `most_lines` wait; further ones are dropped and counted, and
    the count is written with the next line that gets through. Not through `sys.stderr`: the interpreter waits for its
    lock when it ends, and the thread may hold it for ever.

    The thread lives as long as the process: a library that configures its own logging (vLLM does) has `logging` close
    every handler there is, and what comes after that is to be written too.
    """

    def __init__(self, fd: int = _STDERR, *, most_lines: int = _MOST_LINES) -> None:
        super().__init__()
        self._fd = fd
        self._most_lines = most_lines
        self.dropped = 0
        self._told = 0
        self._start()
        os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        """A queue and its thread; a forked process has the one without the other."""
        self._lines: queue.Queue[bytes | threading.Event] = queue.Queue(self._most_lines)
        threading.Thread(target=self._write_all, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or drop it."""
        try:
            line = self.format(record).encode("utf-8", "replace") + b"\n"
        except (TypeError, ValueError, KeyError):  # arguments that do not fit their text
            self.handleError(record)
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, if that takes no longer than a moment. What is logged later is written as before."""
        reached = threading.Event()
        with suppress(queue.Full):
            self._lines.put(reached, timeout=_FLUSH_WITHIN_S)
            reached.wait(_FLUSH_WITHIN_S)
        super().close()

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            lost = self.dropped - self._told
            if lost and self._write(b"%d log lines were lost\n" % lost):
                self._told += lost
            if not self._write(line):
                self.dropped += 1

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
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return handler


def for_the_engine(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment so that vLLM logs in the same way, here and in the processes it starts.

    Its own handler writes from within the engine's loop. The configuration is a file in `folder`; an operator's own
    (``VLLM_LOGGING_CONFIG_PATH``, ``VLLM_CONFIGURE_LOGGING``) is left alone.
    """
    if _ENGINE_CONFIG in environ or "VLLM_CONFIGURE_LOGGING" in environ:
        return {}
    level = environ.get("VLLM_LOGGING_LEVEL", "WARNING")
    handler = {"class": f"{BoundedHandler.__module__}.{BoundedHandler.__qualname__}", "formatter": "spillway"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"spillway": {"format": _ENGINE_FORMAT}},
        "handlers": {"spillway": handler},
        "loggers": {"vllm": {"handlers": ["spillway"], "level": level, "propagate": False}},
    }
    path = folder / "vllm_logging.json"
    path.write_bytes(msgspec.json.encode(config))
    return {_ENGINE_CONFIG: str(path)}


def say(text: str) -> None:
    """Print `text` to standard output, if it takes it: for what a person who starts the node reads."""
    try:
        os.write(1, text.encode("utf-8", "replace") + b"\n")
    except OSError:
        logging.getLogger("spillway").info("%s", text)
