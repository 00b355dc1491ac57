"""Which node this is, among those that share a data folder or a database, and which of them have died.

Every running node holds a lock on ``<folder>/nodes/<id>``; the kernel lets go of it when the process ends, however it
does. So a lock that can be had belongs to a node that is no more, and what it left is for the next one to put right.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from node.store.folders import flush_folder, make_folder


@dataclass(frozen=True, slots=True)
class Identity:
    """This node's id, and those of dead nodes of the same folder, whose rows it is to put right.

    Nobody else goes by any of them: `settled()` lets go of the dead ones' once that is done, `give_back()` of its own.
    """

    id: str
    dead: tuple[str, ...]
    _locks: dict[str, int]

    def settled(self) -> None:
        """What the dead had left is put right."""
        for name in self.dead:
            if (lock := self._locks.pop(name, None)) is not None:
                os.close(lock)

    def give_back(self) -> None:
        """The node ends: the next one of this folder goes by the same id."""
        while self._locks:
            os.close(self._locks.popitem()[1])


def take_identity(folder: Path) -> Identity:
    """An id that nobody else goes by: a dead node's, else a new one. Raises `OSError`."""
    nodes = folder / "nodes"
    make_folder(nodes)
    locks = {file.name: lock for file in sorted(nodes.iterdir()) if (lock := _try_lock(file)) is not None}
    while not locks:
        name = secrets.token_hex(8)
        if (lock := _try_lock(nodes / name)) is not None:
            locks[name] = lock
            flush_folder(nodes)  # or, after a power cut, nobody would know whose its rows are
    mine, *dead = locks
    return Identity(mine, tuple(dead), locks)


def _try_lock(file: Path) -> int | None:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def are_running(folder: Path) -> bool:
    """Whether a node of this data folder is running. Raises `OSError`."""
    nodes = folder / "nodes"
    if not nodes.is_dir():
        return False
    for file in nodes.iterdir():
        lock = _try_lock(file)
        if lock is None:
            return True
        os.close(lock)
    return False
