"""Folders for temporary files that are gone when who made them is, however it ended.

vLLM's processes talk through sockets with random names in `/tmp`; one that is killed leaves its own behind, and nobody
could say whose they are.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# unix(7): a socket's path has 107 bytes; vLLM's are named by a UUID.
_LONGEST_FOLDER = 107 - len("/00000000-0000-0000-0000-000000000000")
_ALWAYS_SHORT = "/tmp"
_ADDED = len("/spillway-4294967295/12345678")


class Scratch:
    """A new folder, `path`, in `base` that only this user can enter: until `remove`, or until this process has ended
    and the next such folder is made. A lock that the kernel lets go of tells whose process is still there.

    Where `base` is not to be had, or others can write to it, it is an ordinary temporary folder.
    """

    def __init__(self, base: Path | None = None) -> None:
        try:
            self.path, self._lock = _made(base or scratch_folder())
        except OSError:
            self.path, self._lock = Path(tempfile.mkdtemp(prefix="spillway-")), -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder with all that is in it. Once."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)

    def for_the_engine(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What to add to the environment so that vLLM's sockets lie here; nothing where the operator says where, or
        where the path is too long for them.

        Not `TMPDIR`: what PyTorch compiles it keeps there too, for the next engine.
        """
        if "VLLM_RPC_BASE_PATH" in environ or len(os.fsencode(self.path)) > _LONGEST_FOLDER:
            return {}
        return {"VLLM_RPC_BASE_PATH": str(self.path)}


def scratch_folder() -> Path:
    """Where they all lie, for this user: beside the temporary files, if sockets in there have short enough names."""
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) + _ADDED > _LONGEST_FOLDER:
        place = _ALWAYS_SHORT
    return Path(place, f"spillway-{os.geteuid()}")


def check_ours(folder: Path) -> None:
    """Raise `PermissionError` for a folder that others could write to."""
    status = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder}: not a folder that only this user can write to")


def _made(base: Path) -> tuple[Path, int]:
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_ours(base)
    with _locked(base):  # between a folder's making and its lock, it would look as if nobody had it
        for each in list(os.scandir(base)):
            if each.is_dir(follow_symlinks=False):
                _remove_if_left(each.path)
        path = Path(tempfile.mkdtemp(prefix="", dir=base))
        return path, _lock(path)


def _remove_if_left(path: str) -> None:
    try:
        lock = _lock(path, fcntl.LOCK_NB)
    except BlockingIOError:
        return  # somebody's
    try:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _lock(path)
    try:
        yield
    finally:
        os.close(lock)


def _lock(path: str | Path, how: int = 0) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
