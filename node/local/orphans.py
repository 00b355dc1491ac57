"""A note on disk of the processes each engine runs in, so that the next node can end those of one that was killed.

The kernel kills them together with the node (see `lifeline`). This is for what that misses: a process that hung in a
driver and could not die, or whose kernel does not do it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from node.local.processes import EngineProcess, start_ticks, sweep
from node.local.scratch import check_ours
from node.local.segments import Segment, segments_of, sweep_segments

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine's processes, and the node they belong to. Start times mean something only within one boot.

    `segments` is the shared memory that the processes had when it was written.
    """

    boot_id: str
    node: EngineProcess
    processes: tuple[EngineProcess, ...]
    segments: tuple[Segment, ...] = ()


def notes_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the notes of all nodes of this user lie: its runtime folder, else one for it under the temporary files."""
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "spillway")
    return Path(tempfile.gettempdir(), f"spillway-{os.geteuid()}")


class EngineNote:
    """The note on one engine of this process, in `folder`. A folder others could write to is not used (`OSError`)."""

    def __init__(self, folder: Path, model_name: str) -> None:
        self._folder = folder
        digest = hashlib.sha256(model_name.encode()).hexdigest()[:16]
        self._path = folder / f"{os.getpid()}-{digest}.json"

    def write(self, processes: frozenset[EngineProcess]) -> None:
        """Note `processes`, in place of what was noted before; none: there is no note any more.

        Written beside and renamed: there is never half of it.
        """
        if not processes:
            self._path.unlink(missing_ok=True)
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_ours(self._folder)
        ticks = start_ticks(os.getpid())
        assert ticks is not None
        node = EngineProcess(os.getpid(), ticks)
        note = _Note(_boot_id(), node, tuple(processes), tuple(segments_of(processes)))
        beside = self._path.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(note))
        beside.replace(self._path)


def sweep_orphans(folder: Path, grace_s: float = 2.0) -> list[int]:
    """End the engine processes of nodes that are no more, and remove their shared memory. Blocks. Returns the pids.

    A process is ended only when pid and start time are both as noted, in the same boot, and its node is gone: a node
    that runs beside this one keeps its own. Raises `OSError` for a folder that others could write to.
    """
    ended: list[int] = []
    for path, note in _notes_of_the_dead(folder):
        if note is not None and note.boot_id == _boot_id():
            ended += sweep(note.processes, grace_s)
            sweep_segments(note.segments)
        path.unlink(missing_ok=True)
    return ended


def orphans(folder: Path) -> list[int]:
    """The pids that `sweep_orphans` would end, which are left alone. Raises `OSError` as that does."""
    notes = [note for _, note in _notes_of_the_dead(folder) if note is not None and note.boot_id == _boot_id()]
    return [each.pid for note in notes for each in note.processes if each.find() is not None]


def _notes_of_the_dead(folder: Path) -> Iterator[tuple[Path, _Note | None]]:
    """The notes whose node is no more; None for one of another version, or not ours: nothing may be ended by it."""
    if not folder.is_dir():
        return
    check_ours(folder)  # whoever can write here can have processes of ours ended
    for path in sorted(folder.glob("*.json")):
        try:
            note = msgspec.json.decode(path.read_bytes(), type=_Note)
        except FileNotFoundError:
            continue  # another node that starts just now was quicker
        except msgspec.DecodeError:
            yield path, None
            continue
        if note.boot_id != _boot_id() or note.node.find() is None:
            yield path, note


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
