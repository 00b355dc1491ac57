"""A disk that fills up: a file system in memory of a size of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """One that is mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has_room_for(self, kib: int) -> None:
        """Make it larger, or smaller, while it is in use."""
        subprocess.run(["mount", "-o", f"remount,size={kib}k", str(self.folder)], check=True)


@contextmanager
def _mounted(folder: Path, kib: int) -> Iterator[SmallDisk]:
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


MakeDisk = Callable[[Path, int], SmallDisk]


@pytest.fixture
def small_disk() -> Iterator[MakeDisk]:
    """Mounts one of so many KiB at a folder, until the end of the test."""
    with ExitStack() as mounted:
        yield lambda folder, kib: mounted.enter_context(_mounted(folder, kib))
