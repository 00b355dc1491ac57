"""What an engine, or a node, puts among the temporary files is gone when that is, however it ended."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.local.scratch import Scratch, scratch_folder

HOLDER = """
import sys, time
from pathlib import Path
from node.local.scratch import Scratch

folder = Scratch(Path(sys.argv[1])).path
(folder / "socket").touch()
print(folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """As short as the place they have; `tmp_path` is too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        yield Path(folder, "spillway")


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_live_one_has_is_not(base: Path) -> None:
    mine = Scratch(base)
    repo = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(base)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": repo}
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().decode().strip())
        Scratch(base).remove()
        assert set(base.iterdir()) == {mine.path, theirs}
        other.kill()
    assert (theirs / "socket").exists()
    Scratch(base).remove()
    assert set(base.iterdir()) == {mine.path}
    (mine.path / "sub").mkdir()
    mine.remove()
    assert list(base.iterdir()) == []


def test_notes_that_lie_beside_are_left_alone(base: Path) -> None:
    base.mkdir(mode=0o700)
    note = base / "1-2.json"
    note.touch()
    Scratch(base).remove()
    assert list(base.iterdir()) == [note]


def test_nobody_else_can_enter(base: Path) -> None:
    with Scratch(base) as folder:
        assert folder.parent == base
        assert (folder.stat().st_mode & 0o777, base.stat().st_mode & 0o777) == (0o700, 0o700)


def test_place_that_others_can_write_to_is_not_used(base: Path) -> None:
    base.mkdir()
    base.chmod(0o777)
    with Scratch(base) as folder:
        assert folder.parent == Path(tempfile.gettempdir())
    assert not folder.exists()
    assert list(base.iterdir()) == []


def test_sockets_in_there_have_names_that_are_short_enough_wherever_temporary_files_are(
    monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 60)
    assert scratch_folder().parent == Path("/tmp")
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert scratch_folder().parent == Path("/var/tmp")
    with Scratch(base) as folder:
        scratch = Scratch(base)
        assert len(f"{scratch.path}/00000000-0000-0000-0000-000000000000") <= 107
        assert scratch.for_the_engine({}) == {"VLLM_RPC_BASE_PATH": str(scratch.path)}
        assert scratch.path != folder
        scratch.remove()
    long = Scratch(base / ("y" * 60))
    assert long.for_the_engine({}) == {}
    long.remove()


def test_where_the_operator_says_that_sockets_are_to_lie_they_lie(base: Path) -> None:
    scratch = Scratch(base)
    assert scratch.for_the_engine({"VLLM_RPC_BASE_PATH": "/run/vllm"}) == {}
    scratch.remove()
