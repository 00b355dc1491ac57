"""Which processes an engine started, and making sure none of them outlives it.

vLLM runs its engine core in a child process and, on CPU, the model in a grandchild. When the core is killed, the
grandchild is re-parented to pid 1 and goes on holding memory, so identity is kept as pid plus start time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

# The interpreter's own helper, shared by all spawned children; it ends with this process.
_SHARED_HELPER = "multiprocessing.resource_tracker"


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """One process, safe against a reused pid. `started_s` is Unix time as the kernel reports it."""

    pid: int
    started_s: float

    def find(self) -> psutil.Process | None:
        """The live process (a zombie counts as gone), or None."""
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.started_s and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None


def descendants(roots: Iterable[EngineProcess] | None = None) -> frozenset[EngineProcess]:
    """Every live process below this one, or below (and including) `roots`."""
    found: set[EngineProcess] = set()
    starts = [psutil.Process()] if roots is None else [process for root in roots if (process := root.find())]
    for start in starts:
        try:
            family = start.children(recursive=True) + ([] if roots is None else [start])
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                if _SHARED_HELPER not in " ".join(process.cmdline()):
                    found.add(EngineProcess(process.pid, process.create_time()))
            except psutil.NoSuchProcess:
                continue
    return frozenset(found)


def step_back(processes: Iterable[EngineProcess]) -> None:
    """Let every thread of `processes` run only while nothing else wants its core; threads they start later inherit it.

    For an engine that computes on the CPU: it keeps every core busy that it gets, and on a small machine the process
    that answers clients, and sends to the cloud what the engine cannot take, would wait for its turn. A lower priority
    (`nice`) is not enough: on two cores the front end was seen to wait up to 0.7 s for one, at a niceness of 5 as at 0;
    under SCHED_IDLE not once.
    """
    for process in processes:
        if (found := process.find()) is None:
            continue
        try:
            for thread in found.threads():
                os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))  # takes a thread's id too
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue


def sweep(processes: Iterable[EngineProcess], grace_s: float) -> list[int]:
    """End what is left of `processes`: SIGTERM, up to `grace_s` seconds, SIGKILL. Blocks. Returns the pids it ended."""
    left = [found for process in processes if (found := process.find())]
    for process in left:
        _signal(process, kill=False)
    _, alive = psutil.wait_procs(left, timeout=grace_s) if left else ([], [])
    for process in alive:
        _signal(process, kill=True)
    psutil.wait_procs(alive, timeout=5.0)
    multiprocessing.active_children()  # reaps our own children that have ended
    return [process.pid for process in left]


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return
