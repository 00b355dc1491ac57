"""Shared memory that a killed process leaves is removed; what anybody else has, or has got the name since, is not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory
from pathlib import Path

import msgspec
import pytest

from node.local.orphans import EngineNote, sweep_orphans
from node.local.processes import EngineProcess, start_ticks
from node.local.segments import Segment, segments_of, sweep_segments

# Spawns two that make shared memory and a lock, kills them, and removes what the first had, as an engine's is. They
# share the queue's locks with this process.
_NODE = """
import multiprocessing, sys, time
from multiprocessing import shared_memory
from node.local.processes import EngineProcess, start_ticks
from node.local.segments import forget, segments_of, sweep_segments

def held(names):
    kept = shared_memory.SharedMemory(create=True, size=4096)
    lock = multiprocessing.get_context("spawn").Lock()
    names.put(kept.name)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    names = context.SimpleQueue()
    engine, other = (context.Process(target=held, args=(names,)) for _ in range(2))
    engine.start()
    names.get()
    had = segments_of([EngineProcess(engine.pid, start_ticks(engine.pid))])
    if "other" in sys.argv:
        other.start()
        print(names.get())
        other.kill()
        other.join()
    engine.kill()
    engine.join()
    removed = sweep_segments(had)
    forget(removed)
    assert [name[:4] for name in removed] == ["psm_", "sem."], removed
"""

# Not told to the resource tracker, as after a node that was killed together with it.
_HOLD = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *which: None
name = sys.argv[1] if len(sys.argv) > 1 else None
held = shared_memory.SharedMemory(name=name, create=name is None, size=4096)
print(held.name, flush=True)
time.sleep(600)
"""


@contextmanager
def holder(name: str | None = None) -> Iterator[tuple[subprocess.Popen[str], EngineProcess, Path]]:
    """A process with a segment, a new one or that of this name."""
    command = [sys.executable, "-c", _HOLD, *([name] if name else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            path = Path("/dev/shm", process.stdout.readline().strip())
            ticks = start_ticks(process.pid)
            assert ticks is not None
            yield process, EngineProcess(process.pid, ticks), path
        finally:
            process.kill()
            process.wait()
            path.unlink(missing_ok=True)


def test_what_a_killed_process_had_is_removed() -> None:
    with holder() as (process, engine, path):
        had = segments_of([engine])
        assert had == {Segment(path.name, path.stat().st_ino)}
        assert sweep_segments(had) == [], "it still has it"
        process.kill()
        process.wait()
        assert path.exists(), "a killed process removes nothing"
        assert segments_of([engine]) == frozenset()
        assert sweep_segments(had) == [path.name]
        assert not path.exists()
        assert sweep_segments(had) == []


def test_what_somebody_else_has_too_stays() -> None:
    with holder() as (process, engine, path), holder(path.name):
        had = segments_of([engine])
        process.kill()
        process.wait()
        assert sweep_segments(had) == []
        assert path.exists()


def test_name_that_is_another_segments_by_now_is_left_alone() -> None:
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.close()
    try:
        path = Path("/dev/shm", memory.name)
        assert sweep_segments([Segment(memory.name, path.stat().st_ino + 1)]) == []
        assert path.exists()
    finally:
        memory.unlink()


def test_what_was_removed_is_not_told_as_leaked_at_the_end_and_what_did_leak_still_is(tmp_path: Path) -> None:
    script = tmp_path / "node_script.py"
    script.write_text(_NODE)
    repo = str(Path(__file__).resolve().parents[2])

    def said(*arguments: str) -> tuple[str, str]:
        ended = subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": repo},
        )
        return ended.stdout.strip(), ended.stderr

    assert said() == ("", "")
    leaked, told = said("other")
    assert "There appear to be 1 leaked semaphore objects" in told
    assert "There appear to be 1 leaked shared_memory objects" in told
    assert "No such file" not in told
    assert not Path("/dev/shm", leaked).exists(), "which the tracker then removes"


@pytest.mark.parametrize("alive", [True, False], ids=["orphaned", "killed with its node"])
def test_row_69_next_node_removes_what_the_processes_of_a_killed_one_had(tmp_path: Path, alive: bool) -> None:
    with holder() as (process, engine, path):
        EngineNote(tmp_path, "demo").write(frozenset({engine}))
        (note,) = tmp_path.iterdir()
        if not alive:
            process.kill()
            process.wait()
        assert sweep_orphans(tmp_path) == [], "its node still runs"
        assert path.exists()
        said = msgspec.json.decode(note.read_bytes())
        said["node"]["start_ticks"] -= 1
        note.write_bytes(msgspec.json.encode(said))
        assert sweep_orphans(tmp_path) == ([process.pid] if alive else [])
        assert not path.exists()
