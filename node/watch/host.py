"""What the kernel says of this process: its memory and its container's, its file descriptors."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from node.watch.strain import Resource

_MEMORY_RESERVE_BYTES = 512 * 1024 * 1024
_DESCRIPTOR_RESERVE = 256
_V2 = Path("/sys/fs/cgroup")
# cgroup v1 says "no limit" with the largest number of pages; no machine has an exbibyte.
_NO_LIMIT_BYTES = 1 << 60


class HostReader:
    """Reads a sample; well under a millisecond for a thousand descriptors. `max_rss_bytes` None: no limit of our own.

    `proc` is this process's folder under /proc, `cgroup` the mount of its memory controller.
    """

    def __init__(self, max_rss_bytes: int | None, *, proc: Path = Path("/proc/self"), cgroup: Path = _V2) -> None:
        self.max_rss_bytes = max_rss_bytes
        self._proc = proc
        # In a container the mount is the container's own; under a service manager ours is somewhere below it.
        self._memory_files = (
            (_own_folder(proc, cgroup), "memory.max", "memory.current", "inactive_file"),
            (cgroup, "memory.max", "memory.current", "inactive_file"),
            (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        )

    def read(self) -> tuple[Resource, ...]:
        """Whatever has a limit and is known now."""
        return tuple(each for each in (self._rss(), self._container(), self._descriptors()) if each is not None)

    def _rss(self) -> Resource | None:
        if self.max_rss_bytes is None:
            return None
        pages = _numbers(self._proc / "statm")
        if len(pages) < 2:
            return None
        used = pages[1] * os.sysconf("SC_PAGE_SIZE")
        return Resource(name="memory", used=used, limit=self.max_rss_bytes, reserve=_MEMORY_RESERVE_BYTES)

    def _container(self) -> Resource | None:
        for folder, limit_name, used_name, idle_name in self._memory_files:
            limit, used = _numbers(folder / limit_name), _numbers(folder / used_name)
            if limit and used and limit[0] < _NO_LIMIT_BYTES:
                # What the kernel can drop at once is not in use; loading a model leaves gigabytes of it.
                idle = _named_number(folder / "memory.stat", idle_name) or 0
                return Resource(
                    name="container memory",
                    used=max(0, used[0] - idle),
                    limit=limit[0],
                    reserve=_MEMORY_RESERVE_BYTES,
                )
        return None

    def _descriptors(self) -> Resource | None:
        limit = descriptor_limit()
        try:
            with os.scandir(self._proc / "fd") as entries:
                used = sum(1 for _ in entries)
        except OSError:
            # There is none left to look with, or nobody to ask: the first is the case that matters.
            return None if limit is None else Resource(name="file descriptors", used=limit, limit=limit, reserve=limit)
        if limit is None:
            return None
        return Resource(name="file descriptors", used=used, limit=limit, reserve=_DESCRIPTOR_RESERVE)


def descriptor_limit() -> int | None:
    """How many file descriptors this process may have open, None for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit(wanted: int) -> int | None:
    """Have at least `wanted` descriptors, or as many as the hard limit allows; returns the limit, None for no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    return descriptor_limit()


def _own_folder(proc: Path, cgroup: Path) -> Path:
    """This process's cgroup (v2) below the mount `cgroup`; the mount itself where that is not known."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return cgroup
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    return cgroup / own.lstrip("/")


def _numbers(path: Path) -> list[int]:
    """The numbers in a one-line file; none if it cannot be read, or says a word (``max``)."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _named_number(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(name + " ")]
    return int(found[0]) if found and found[0].isdigit() else None
