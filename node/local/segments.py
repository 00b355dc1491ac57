"""Shared memory in `/dev/shm` that an engine's processes leave behind when they are killed.

vLLM's processes talk through named segments (on the CPU 400 MB of them, touched as they are used), which whoever made
them removes at its end. One that is killed does not, and Python's resource tracker does it only once the node has
ended: an engine that dies again and again would fill the memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from node.local.processes import EngineProcess

_FOLDER = Path("/dev/shm")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Segment:
    """A named piece of shared memory, safe against a reused name."""

    name: str
    inode: int


def segments_of(processes: Iterable[EngineProcess]) -> frozenset[Segment]:
    """The named segments that any of the live `processes` has mapped."""
    found = (_mapped(Path(f"/proc/{process.pid}")) for process in processes if process.find() is not None)
    return frozenset(segment for mapped in found for segment in mapped)


def sweep_segments(segments: Iterable[Segment]) -> list[str]:
    """Remove those of `segments` that are still there and that nobody has mapped any more. Returns their names."""
    left = {segment for segment in segments if _is_there(segment)}
    if not left:
        return []
    for process in Path("/proc").glob("[0-9]*"):
        left -= _mapped(process)
    for segment in left:
        (_FOLDER / segment.name).unlink(missing_ok=True)
    return sorted(segment.name for segment in left)


def _is_there(segment: Segment) -> bool:
    try:
        status = (_FOLDER / segment.name).stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return status.st_ino == segment.inode and status.st_uid == os.geteuid()


def _mapped(process: Path) -> frozenset[Segment]:
    """Empty for a process that is gone, and for one of another user, to whom the segments are closed (mode 0600)."""
    try:
        return frozenset(_named((process / "maps").read_text(errors="replace")))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return frozenset()


def _named(maps: str) -> Iterator[Segment]:
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)  # proc_pid_maps(5): address, mode, offset, device, inode, path
        if len(fields) == 6 and fields[5].startswith(f"{_FOLDER}/") and not fields[5].endswith(_DELETED):
            name = fields[5].removeprefix(f"{_FOLDER}/")
            if "/" not in name:
                yield Segment(name, int(fields[4]))
