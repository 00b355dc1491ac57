"""What ties an engine's processes to the node: when the node dies, however it dies, the kernel kills them.

This runs inside the engine's processes too, before anything of vLLM is imported there: it needs no other library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any

from node.local.root_cause import note_failures

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SPAWNED = "--multiprocessing-fork"
_libc = ctypes.CDLL(None, use_errno=True)


def hold(parent: int) -> None:
    """Die by SIGKILL when the thread of `parent` that started this process ends, and have our own children do so too.

    What ends its start before that is noted down for the node.

    vLLM's engine core starts the workers, each by SIGKILL gone when the core is: vLLM itself only asks them to leave,
    which one that waits for the core in shared memory does not hear. A kernel's signal reaches a stopped process and
    one that hangs in a driver alike; prctl(2) keeps it over exec, not over fork.
    """
    note_failures()
    _die_with(parent)
    os.register_at_fork(after_in_child=lambda: _die_with(os.getppid()))
    util.spawnv_passfds = spawn_held


def spawn_held(path: bytes, args: Sequence[Any], passfds: Sequence[int], group: int | None = None) -> int:
    """`multiprocessing.util.spawnv_passfds` for a child that holds on to this process; `group` as in `Popen`."""
    child = subprocess.Popen(held(args), executable=path, pass_fds=passfds, process_group=group)
    child.returncode = 0  # multiprocessing waits for it; this object must not
    return child.pid


def held(args: Sequence[Any]) -> Sequence[Any]:
    """The command line of a spawned child, with `hold` before all else. One that is no such child stays as it is.

    Not through `preexec_fn`, which runs Python between fork and exec, where a lock of another thread is never released.
    """
    if _SPAWNED not in args or "-c" not in args:
        return args
    changed = list(args)
    at = changed.index("-c") + 1
    root = str(Path(__file__).resolve().parents[2])
    first = f"import sys; sys.path.insert(0, {root!r}); from node.local.lifeline import hold; sys.path.pop(0); "
    changed[at] = f"{first}hold({os.getpid()}); {changed[at]}"
    return changed


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)
