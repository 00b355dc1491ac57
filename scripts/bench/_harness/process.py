"""Child processes of a bench: started, asked whether they are ready, measured, and ended by their own pid."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil


class CannotRun(Exception):
    """The bench cannot be run here; the message says what is missing."""


@dataclass(frozen=True)
class Service:
    """A running server: `url` is its base without /v1, `pid` the root of its process tree."""

    name: str
    pid: int
    url: str


@dataclass(frozen=True)
class Usage:
    """What a process tree has used so far: CPU seconds (user and system) and resident bytes at this moment."""

    cpu_s: float
    rss_bytes: int


def end_on_sigterm() -> None:
    """Makes SIGTERM unwind the program like Ctrl-C does, so that every child is ended on the way out."""

    def unwind(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, unwind)


def program(name: str, hint: str) -> str:
    """The path of a program; raises CannotRun with `hint` when it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise CannotRun(f"{name} was not found: {hint}")
    return found


def free_port() -> int:
    """A TCP port of loopback that nobody holds at this moment, nor the next one, where a node has its admin API."""
    while True:
        with socket.socket() as probe, socket.socket() as following:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            try:
                following.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    url: str,
    ready_path: str,
    log: Path,
    env: Mapping[str, str],
    ready_within_s: float = 120,
) -> Iterator[Service]:
    """A server as a child process, from its first good answer on `ready_path` to the end of the with block.

    Its output goes to `log`; raises CannotRun, with the end of that log, when it dies or is not ready in time.
    """
    with log.open("wb") as output:
        # Its own process group: a Ctrl-C reaches only the bench, which then ends its children one by one. Not its own
        # session: between those Linux shares cores out evenly (sched(7), autogroup), and the load generator would wait
        # for an engine on the CPU, which steps back for all in its session.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), process_group=0
        )
    try:
        deadline_s = time.monotonic() + ready_within_s
        while not _answers(url + ready_path):
            if child.poll() is not None or time.monotonic() > deadline_s:
                state = "is not ready" if child.returncode is None else f"exited with {child.returncode}"
                raise CannotRun(f"{name} {state}:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield Service(name, child.pid, url)
    finally:
        _end(child)


def usage(pid: int) -> Usage:
    """CPU time and memory of the process tree under `pid`; processes that end while being read count as nothing."""
    cpu_s, rss_bytes = 0.0, 0
    for process in _tree(pid):
        try:
            times, memory = process.cpu_times(), process.memory_info()
        except psutil.NoSuchProcess:
            continue
        cpu_s += times.user + times.system
        rss_bytes += memory.rss
    return Usage(cpu_s, rss_bytes)


def own_cpu_s(pid: int) -> float:
    """CPU seconds (user and system) of one process with all its threads, but without its children."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def settle(pid: int, *, quiet_share: float = 0.1, within_s: float = 5.0) -> None:
    """Waits until the tree under `pid` has digested what the last load left in it (uses < `quiet_share` of a core)."""
    deadline_s = time.monotonic() + within_s
    step_s = 0.2
    while time.monotonic() < deadline_s:
        before_s = usage(pid).cpu_s
        time.sleep(step_s)
        if usage(pid).cpu_s - before_s < quiet_share * step_s:
            return


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
            return 200 <= int(answer.status) < 300
    except (urllib.error.URLError, OSError):
        return False


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(child: subprocess.Popen[bytes], grace_s: float = 15.0) -> None:
    """SIGTERM to the child, SIGKILL after `grace_s`; whatever it had started and left behind is killed by pid."""
    started = _tree(child.pid)[1:]
    if child.poll() is None:
        os.kill(child.pid, signal.SIGTERM)
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for process in started:
        # psutil compares start times, so a pid that was given to another program meanwhile is left alone.
        if process.is_running():
            process.kill()
