from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from node.local.processes import (
    EngineProcess,
    descendants,
    spawning_apart,
    start_ticks,
    step_back,
    step_up,
    sweep,
)

# A child that starts a grandchild deaf to SIGTERM, says so, and waits.
FAMILY = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
grandchild.stdout.readline()
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[bytes], frozenset[EngineProcess]]]:
    before = descendants()
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        started = descendants() - before
        yield child, started
        sweep(started, 0.0)


def test_child_and_grandchild_are_both_known(family: tuple[subprocess.Popen[bytes], frozenset[EngineProcess]]) -> None:
    child, started = family
    assert len(started) == 2
    assert child.pid in {process.pid for process in started}


def test_orphaned_grandchild_is_swept(family: tuple[subprocess.Popen[bytes], frozenset[EngineProcess]]) -> None:
    child, started = family
    child.kill()
    child.wait()
    (orphan,) = [process for process in started if process.find()]
    assert sweep(started, 0.1) == [orphan.pid]
    assert orphan.find() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take a process back from SCHED_IDLE")
def test_those_who_stepped_back_step_up_to_end(
    family: tuple[subprocess.Popen[bytes], frozenset[EngineProcess]],
) -> None:
    _, started = family
    step_back(started)
    assert {os.sched_getscheduler(process.pid) for process in started} == {os.SCHED_IDLE}
    step_up(started)
    assert {os.sched_getscheduler(process.pid) for process in started} == {os.SCHED_OTHER}


def test_reused_pid_is_left_alone() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    stranger = EngineProcess(os.getpid(), ticks - 1)
    assert stranger.find() is None
    assert sweep([stranger], 0.0) == []


def test_what_is_spawned_apart_has_a_group_of_its_own_in_our_session_and_is_waited_for_as_ever() -> None:
    spawn = multiprocessing.get_context("spawn")
    with spawning_apart():
        apart = spawn.Process(target=time.sleep, args=(60,))
        apart.start()
    beside = spawn.Process(target=time.sleep, args=(60,))
    beside.start()
    try:
        assert apart.pid is not None
        assert beside.pid is not None
        assert os.getpgid(apart.pid) == apart.pid
        assert os.getsid(apart.pid) == os.getsid(0), "else the kernel shares cores out between the two first"
        assert os.getpgid(beside.pid) == os.getpgid(0)
    finally:
        for process in (apart, beside):
            process.terminate()
            process.join(10)
    assert (apart.exitcode, beside.exitcode) == (-signal.SIGTERM, -signal.SIGTERM)
