"""Shared memory and semaphores in `/dev/shm` that an engine's processes leave behind when they are killed.

vLLM's processes talk through named segments (on the CPU 400 MB of them, touched as they are used), which whoever made
them removes at its end. One that is killed does not, and Python's resource tracker does it only once the node has
ended: an engine that dies again and again would fill the memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

from node.local.processes import EngineProcess

_FOLDER = Path("/dev/shm")
# What multiprocessing calls the files of what it makes, what it tells the tracker, and what kind that is.
_TRACKED = (("psm_", "/psm_", "shared_memory"), ("sem.mp-", "/mp-", "semaphore"))


@dataclass(frozen=True, slots=True)
class Segment:
    """A named piece of shared memory, safe against a reused name."""

    name: str
    inode: int


def segments_of(processes: Iterable[EngineProcess]) -> frozenset[Segment]:
    """The named segments that any of the live `processes` has mapped."""
    inodes = {
        inode for process in processes if process.find() is not None for inode in _mapped(Path(f"/proc/{process.pid}"))
    }
    if not inodes:
        return frozenset()
    with os.scandir(_FOLDER) as entries:
        return frozenset(Segment(entry.name, entry.inode()) for entry in entries if entry.inode() in inodes)


def sweep_segments(segments: Iterable[Segment]) -> list[str]:
    """Remove those of `segments` that are still there and that nobody has mapped any more. Returns their names."""
    left = {segment for segment in segments if _is_there(segment)}
    if not left:
        return []
    for process in Path("/proc").glob("[0-9]*"):
        mapped = _mapped(process)
        left = {segment for segment in left if segment.inode not in mapped}
    for segment in left:
        (_FOLDER / segment.name).unlink(missing_ok=True)
    return sorted(segment.name for segment in left)


def forget(names: Iterable[str]) -> None:
    """Tell Python's resource tracker that these, made in processes which this one spawned, have been removed.

    It would look for them once the node has ended, and complain on standard error of what leaked and of what it does
    not find. Whatever else has leaked it still tells.
    """
    for name in names:
        for begins, told, kind in _TRACKED:
            if name.startswith(begins):
                resource_tracker.unregister(name.replace(begins, told, 1), kind)


def _is_there(segment: Segment) -> bool:
    try:
        status = (_FOLDER / segment.name).stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return status.st_ino == segment.inode and status.st_uid == os.geteuid()


def _mapped(process: Path) -> frozenset[int]:
    """The inodes of what it has mapped there: whoever made a semaphore has it under a name from before it was there.

    Empty for a process that is gone, and for one of another user, to whom the segments are closed (mode 0600).
    """
    try:
        maps = (process / "maps").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return frozenset()
    lines = (line.split(maxsplit=5) for line in maps.splitlines() if f" {_FOLDER}/" in line)
    return frozenset(int(fields[4]) for fields in lines)  # proc_pid_maps(5): address, mode, offset, device, inode, path
