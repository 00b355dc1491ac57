"""Why an engine did not start, from the process that knows: written down there, told here.

vLLM's engine core, and each worker below it, logs the exception that ends its start and ends; what vLLM raises in this
process says "see root cause above", which is in nobody's log line but its own. So the exception is noted down too. The
worker of a core is first to note its own, and the first is the cause of the others.

`note_failures` runs inside the engine's processes, before anything of vLLM is imported there: this needs no other
library at the top.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATH = "SPILLWAY_ENGINE_FAILURE"
_FAILED_TO_START = ("EngineCore failed to start.", "WorkerProc failed to start.")
_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class RootCause:
    """`kinds`: the names of the exception's class and of all that it is a kind of. `words` are one line."""

    kinds: tuple[str, ...]
    words: str

    def __str__(self) -> str:
        return f"{self.kinds[0]}: {self.words}" if self.words else self.kinds[0]


@contextmanager
def noted() -> Iterator[Path]:
    """Processes that are started inside the block note down what ends their start, in the file that this gives."""
    with tempfile.TemporaryDirectory(prefix="spillway-engine-") as folder:
        path = Path(folder, "failure.json")
        os.environ[_PATH] = str(path)
        try:
            yield path
        finally:
            os.environ.pop(_PATH, None)


def note_failures() -> None:
    """Note down the exception with which this process says that it failed to start, if the node asked for it.

    Through the factory of log records: the handlers are whatever the configuration says, which may be an operator's.
    """
    if (path := os.environ.get(_PATH)) is None:
        return
    plain = logging.getLogRecordFactory()

    def noting(*args: Any, **more: Any) -> logging.LogRecord:
        record = plain(*args, **more)
        if record.msg in _FAILED_TO_START and record.exc_info and record.exc_info[1] is not None:
            _note(path, record.exc_info[1])
        return record

    logging.setLogRecordFactory(noting)


def _note(path: str, error: BaseException) -> None:
    kinds = [each.__name__ for each in type(error).__mro__ if each is not object]
    text = json.dumps({"kinds": kinds, "words": " ".join(str(error).split())[:_LONGEST]})
    try:
        with Path(path).open("x") as file:
            file.write(text)
    except OSError:  # another one was first, or the node is gone
        return


def read(path: Path, raised: str) -> RootCause | None:
    """What was noted in `path`. None: nothing, and `raised`, which vLLM said here, does not tell of a signal either."""
    try:
        noted_down = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return _ended_by_signal(raised)
    return RootCause(tuple(noted_down["kinds"]), noted_down["words"])


def _ended_by_signal(raised: str) -> RootCause | None:
    """A process that the kernel or an operator ended notes nothing; vLLM gives the exit code: `{'EngineCore': -9}`."""
    found = re.search(r"proc\(s\): \{'[^']+': -(\d+)", raised)
    if found is None:
        return None
    name = signal.Signals(int(found[1])).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return RootCause((f"ended by {name}{hint}",), "")
