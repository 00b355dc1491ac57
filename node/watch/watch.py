"""The GPU watch: one thread asks NVML, everyone else reads its latest answer without waiting."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from node.watch.values import GpuSnapshot, GpuWatchState

_T = TypeVar("_T")


class GpuReader(Protocol):
    """Where samples come from: `NvmlReader`. Both calls run in the watch's thread and may block."""

    def read(self, now_s: float) -> GpuWatchState:
        """One sample, stamped `now_s`."""
        ...

    def close(self) -> None:
        """Called once, after the last read."""
        ...


class GpuWatch:
    """Samples the GPUs every `interval_s` seconds in a thread of its own, from `start()` to `stop()`.

    NVML calls can hang for ever (a GPU that falls off the bus, a wedged driver). The thread is therefore a daemon
    that nobody waits for longer than `stop_timeout_s`: a hang makes the answer "not known", and nothing slower.
    An answer older than `stale_after_intervals` intervals is no longer given out. `clock` gives monotonic seconds
    and is also called from the thread.
    """

    def __init__(
        self,
        reader: GpuReader,
        clock: Callable[[], float],
        *,
        interval_s: float = 1.0,
        stale_after_intervals: float = 5.0,
        stop_timeout_s: float = 1.0,
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._interval_s = interval_s
        self._stale_after_s = interval_s * stale_after_intervals
        self._stop_timeout_s = stop_timeout_s
        self._latest = GpuWatchState(gpus=None, reason="not sampled yet")
        self._waiters: deque[Future[GpuWatchState]] = deque()  # appends and pops are atomic across threads
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="spillway-gpu-watch", daemon=True)

    def start(self) -> None:
        """Begin sampling; returns at once. Raises RuntimeError when called a second time."""
        self._thread.start()

    def latest(self) -> tuple[GpuSnapshot, ...] | None:
        """The GPUs as last sampled: () when there is none to be seen, None before the first sample and when stale."""
        return self.state().gpus

    def state(self) -> GpuWatchState:
        """The latest sample and, when it holds no GPU, the reason in words. Never blocks."""
        latest = self._latest
        if latest.sampled_at_s is None:
            return latest
        age_s = self._clock() - latest.sampled_at_s
        if age_s <= self._stale_after_s:
            return latest
        return dataclasses.replace(latest, gpus=None, reason=f"no answer from NVML for {age_s:.0f} s")

    async def fresh(self, timeout_s: float) -> GpuWatchState:
        """The state after a sample begun after this call: for start-up, and to see what freed or took memory.

        When NVML has not answered within `timeout_s`, `gpus` is None. A watch that is not running gives `state()`.
        """
        if not self._thread.is_alive():
            return self.state()
        sampled: Future[GpuWatchState] = Future()
        self._waiters.append(sampled)
        self._wake.set()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(sampled), timeout_s)
        except TimeoutError:
            reason = f"no answer from NVML within {timeout_s:g} s"
            return dataclasses.replace(self._latest, gpus=None, reason=reason)

    async def stop(self) -> None:
        """End sampling and close the reader; a thread that hangs in NVML is left behind. May be called again."""
        if self._stopping.is_set() or not self._thread.is_alive():
            return
        self._stopping.set()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(self._ended), self._stop_timeout_s)

    def sample(self) -> None:
        """Take one sample now, in the calling thread. The watch's thread does this; it may block."""
        self._latest = self._reader.read(self._clock())

    def _run(self) -> None:
        try:
            while True:
                self._wake.clear()  # before looking: whoever wakes us has first left what we look for
                if self._stopping.is_set():
                    break
                waiters = [self._waiters.popleft() for _ in range(len(self._waiters))]
                self.sample()
                for waiter in waiters:
                    _answer(waiter, self._latest)
                self._wake.wait(self._interval_s)
            self._reader.close()
        finally:
            while self._waiters:
                _answer(self._waiters.popleft(), GpuWatchState(gpus=None, reason="the GPU watch has ended"))
            _answer(self._ended, None)


def _answer(future: Future[_T], value: _T) -> None:
    if future.set_running_or_notify_cancel():  # False when nobody waits any more
        future.set_result(value)
