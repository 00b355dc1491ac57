"""Which processes an engine started, and making sure none of them outlives it.

vLLM runs its engine core in a child process and, on CPU, the model in a grandchild. When the core is killed, the
grandchild is re-parented to pid 1 and goes on holding memory, so identity is kept as pid plus start time.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path

import psutil

from node.local.lifeline import spawn_held

# The interpreter's own helper, shared by all spawned children; it ends with this process.
_SHARED_HELPER = "multiprocessing.resource_tracker"


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """One process, safe against a reused pid. `start_ticks` is when it started, in clock ticks since the machine did.

    Ticks and not a time of day, which changes for every process when somebody sets the clock.
    """

    pid: int
    start_ticks: int

    def find(self) -> psutil.Process | None:
        """The live process (a zombie counts as gone), or None."""
        if start_ticks(self.pid) != self.start_ticks:
            return None
        try:
            process = psutil.Process(self.pid)
            return process if process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since the machine did (proc_pid_stat(5), field 22). None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, field 2, is in parentheses and may hold anything, those too.
    return int(stat.rpartition(")")[2].split()[22 - 3])


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
                if _SHARED_HELPER in " ".join(process.cmdline()):
                    continue
                if (ticks := start_ticks(process.pid)) is not None:
                    found.add(EngineProcess(process.pid, ticks))
            except psutil.NoSuchProcess:
                continue
    return frozenset(found)


@contextmanager
def spawning_apart() -> Iterator[None]:
    """Whatever multiprocessing spawns inside the block gets a process group of its own, where all it starts is born,
    and dies with the thread that spawned it (see `lifeline`): that thread has to live as long as the engine.

    Ctrl-C, and a SIGTERM to the whole process group, then reach the node alone, which finishes what is running before
    it ends the engine. vLLM's processes would end it at once: they install handlers of their own, so that ignoring
    signals at their start does not help, and a child that has exec'd cannot be moved any more (setpgid(2), EACCES).
    multiprocessing has no switch for it, so the one function through which it spawns is exchanged meanwhile, for the
    whole process.

    Not a session of its own: Linux shares cores out between sessions before it looks at who steps back inside one
    (sched(7), autogroup), and `step_back` would mean nothing to this process. On two cores it was seen to wait for a
    third of the time then, up to 0.1 s at once; in the same session for half a percent.
    """
    plain = util.spawnv_passfds
    util.spawnv_passfds = functools.partial(spawn_held, group=0)  # setpgid between fork and exec
    try:
        yield
    finally:
        util.spawnv_passfds = plain


def step_up(processes: Iterable[EngineProcess]) -> None:
    """Undo `step_back`, where the kernel allows it: for processes that are to end.

    Ending takes them a second of CPU, for which they were seen to wait more than ten beside other work.
    """
    _schedule(processes, os.SCHED_OTHER)


def step_back(processes: Iterable[EngineProcess]) -> None:
    """Let every thread of `processes` run only while nothing else wants its core; threads they start later inherit it.

    For an engine that computes on the CPU: it keeps every core busy that it gets, and on a small machine the process
    that answers clients, and sends to the cloud what the engine cannot take, would wait for its turn. A lower priority
    (`nice`) is not enough: on two cores the front end was seen to wait up to 0.7 s for one, at a niceness of 5 as at 0;
    under SCHED_IDLE not once.
    """
    _schedule(processes, os.SCHED_IDLE)


def _schedule(processes: Iterable[EngineProcess], policy: int) -> None:
    for process in processes:
        if (found := process.find()) is None:
            continue
        try:
            for thread in found.threads():
                os.sched_setscheduler(thread.id, policy, os.sched_param(0))  # takes a thread's id too
        except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue  # gone; or back from SCHED_IDLE without the privilege for it


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
