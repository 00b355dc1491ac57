"""How long the event loop stands still: whatever takes so long on it delays every client at once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from node.background import Background

LONG_S = 0.05
"""A pause beyond this is one that clients feel."""

_INTERVAL_S = 0.01
_WORTH_KEEPING_S = 0.02
_KEPT = 64
_NANO = 1e9


@dataclass(frozen=True, slots=True)
class Pause:
    """One of them, ended at `at_s`. `ran_s`: for how long the loop's thread computed meanwhile, None if nobody tells.

    What is computed on the loop shows there; the rest it waited, for the interpreter, which another thread held, or for
    the system.
    """

    at_s: float
    pause_s: float
    ran_s: float | None


@dataclass(slots=True)
class Pauses:
    """The pauses since start. Seconds, monotonic.

    A pause is the time for which the loop did not turn, less that in which it could have run and the machine ran
    something else (`cpu_wait_s` adds those up; None where the kernel does not tell, and then they count as pauses).
    """

    longest_s: float = 0.0
    long_ones: int = 0
    cpu_wait_s: float | None = None
    recent: deque[Pause] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def take(self, late_s: float, waited_s: float | None, now_s: float, ran_s: float | None = None) -> None:
        """One turn that came `late_s` after its time: it waited for a core for `waited_s` and computed for `ran_s`."""
        pause_s = late_s
        if waited_s is not None:
            self.cpu_wait_s = (self.cpu_wait_s or 0.0) + waited_s
            pause_s = max(0.0, late_s - waited_s)
        self.longest_s = max(self.longest_s, pause_s)
        self.long_ones += pause_s > LONG_S
        if pause_s >= _WORTH_KEEPING_S:
            self.recent.append(Pause(now_s, pause_s, ran_s))


class LoopWatch(Background):
    """Looks a hundred times a second whether the loop turns. A pause is told up to a hundredth of a second too short.

    `clock` gives monotonic seconds.
    """

    task_name = "loop-watch"

    def __init__(self, clock: Callable[[], float]) -> None:
        self.pauses = Pauses()
        self._clock = clock

    def document(self) -> dict[str, Any]:
        """For the statistics: how many tasks there are, and the pauses; the recent ones of 20 ms and more by age."""
        pauses, now_s = self.pauses, self._clock()
        return {
            "tasks": None if self._task is None else len(asyncio.all_tasks(self._task.get_loop())),
            "longest_pause_s": round(pauses.longest_s, 4),
            "pauses_over_50_ms": pauses.long_ones,
            "cpu_wait_s": None if pauses.cpu_wait_s is None else round(pauses.cpu_wait_s, 3),
            "recent_pauses": [
                {
                    "ago_s": round(now_s - each.at_s, 2),
                    "pause_s": round(each.pause_s, 4),
                    "ran_s": None if each.ran_s is None else round(each.ran_s, 4),
                }
                for each in pauses.recent
            ],
        }

    async def _run(self) -> None:
        with _ThreadTimes() as times:
            before = times.read()
            while True:
                due_s = self._clock() + _INTERVAL_S
                await asyncio.sleep(_INTERVAL_S)
                now_s, after = self._clock(), times.read()
                if after is None or before is None:
                    self.pauses.take(now_s - due_s, None, now_s)
                else:
                    self.pauses.take(now_s - due_s, after[1] - before[1], now_s, after[0] - before[0])
                before = after


class _ThreadTimes:
    """How long this thread has run, and has been ready to run while the kernel ran others (proc(5), schedstat)."""

    def __init__(self) -> None:
        self._file: int | None = None

    def __enter__(self) -> Self:
        path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def read(self) -> tuple[float, float] | None:
        """Both in seconds since the thread began; None where nobody tells."""
        fields = b"" if self._file is None else os.pread(self._file, 128, 0)
        if not fields:
            return None
        ran, waited, _ = fields.split()
        return int(ran) / _NANO, int(waited) / _NANO
