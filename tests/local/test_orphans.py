"""What a node that was killed leaves behind is ended by the next one, and nothing else is."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from node.local.orphans import EngineNote, notes_folder, sweep_orphans
from node.local.processes import EngineProcess, spawning_apart, start_ticks


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def process_of(pid: int) -> EngineProcess:
    ticks = start_ticks(pid)
    assert ticks is not None
    return EngineProcess(pid, ticks)


def with_a_dead_node(path: Path) -> None:
    note = msgspec.json.decode(path.read_bytes())
    note["node"]["start_ticks"] -= 1
    path.write_bytes(msgspec.json.encode(note))


def test_row_69_orphan_of_a_killed_node_is_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    folder, orphan = tmp_path / "notes", process_of(sleeper.pid)
    EngineNote(folder, "demo").write(frozenset({orphan}))
    (path,) = folder.iterdir()
    assert sweep_orphans(folder) == [], "its node still runs: that is this process"
    with_a_dead_node(path)
    assert sweep_orphans(folder) == [sleeper.pid]
    assert orphan.find() is None
    assert not list(folder.iterdir())


def test_process_that_has_got_the_pid_since_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    started = process_of(sleeper.pid)
    EngineNote(tmp_path, "demo").write(frozenset({EngineProcess(started.pid, started.start_ticks - 1)}))
    (path,) = tmp_path.iterdir()
    with_a_dead_node(path)
    assert sweep_orphans(tmp_path) == []
    assert sleeper.poll() is None
    assert not list(tmp_path.iterdir())


def test_note_of_another_boot_ends_nothing(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    EngineNote(tmp_path, "demo").write(frozenset({process_of(sleeper.pid)}))
    (path,) = tmp_path.iterdir()
    with_a_dead_node(path)
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"boot_id": "another"}))
    assert sweep_orphans(tmp_path) == []
    assert sleeper.poll() is None


def test_unreadable_note_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "1-x.json").write_text('{"boot_id": "')
    assert sweep_orphans(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_folder_that_others_can_write_to_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        sweep_orphans(folder)
    with pytest.raises(PermissionError):
        EngineNote(folder, "demo").write(frozenset({process_of(os.getpid())}))


def test_note_of_no_processes_is_none(tmp_path: Path) -> None:
    note = EngineNote(tmp_path, "demo")
    note.write(frozenset({process_of(os.getpid())}))
    assert list(tmp_path.iterdir())
    for _ in range(2):
        note.write(frozenset())
    assert not list(tmp_path.iterdir())


def test_notes_lie_in_the_users_runtime_folder_where_there_is_one() -> None:
    assert notes_folder({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/spillway")
    assert notes_folder({}).name == f"spillway-{os.geteuid()}"


# A node that spawns a child, which spawns one too, prints both pids, and waits.
NODE = """
import multiprocessing, sys, threading, time
from tests.local.test_orphans import spawn_another
from node.local.processes import spawning_apart

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pids = context.SimpleQueue()
    with spawning_apart():
        context.Process(target=spawn_another, args=(pids,)).start()
    print(pids.get(), pids.get(), flush=True)
    time.sleep(600)
"""


def spawn_another(pids: "multiprocessing.queues.SimpleQueue[int]") -> None:
    """In the child: start a grandchild, and be deaf to everything."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.get_context("spawn").Process(target=report_and_sleep, args=(pids,)).start()
    report_and_sleep(pids)


def report_and_sleep(pids: "multiprocessing.queues.SimpleQueue[int]") -> None:
    pids.put(os.getpid())
    time.sleep(600)


def test_child_and_grandchild_die_with_a_node_that_is_killed_even_when_stopped(tmp_path: Path) -> None:
    script = tmp_path / "node_script.py"
    script.write_text(NODE)
    repo = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": repo}
    ) as node:
        assert node.stdout is not None
        family = [process_of(int(pid)) for pid in node.stdout.readline().split()]
        assert len(family) == 2
        os.kill(family[0].pid, signal.SIGSTOP)
        node.kill()
        node.wait()
        psutil.wait_procs([found for process in family if (found := process.find())], timeout=20)
        assert [process for process in family if process.find()] == []


def test_what_is_spawned_outside_is_not_tied_to_this_thread() -> None:
    before = multiprocessing.util.spawnv_passfds
    with spawning_apart():
        assert multiprocessing.util.spawnv_passfds is not before
    assert multiprocessing.util.spawnv_passfds is before
