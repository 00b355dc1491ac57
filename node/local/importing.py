"""The first engine of a process, without full garbage collections."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 1_000_000


@contextmanager
def importing_vllm() -> Iterator[None]:
    """For the block in which vLLM is imported: what lives at its end is not looked at by the collector again.

    The import makes hundreds of thousands of objects that stay, and each full collection on the way walks them all
    with the interpreter held: the event loop was seen to stand still for 0.6 s, to free a hundred objects. Young
    objects are collected as ever. Where vLLM has been imported before, nothing is done: an engine must not be kept
    from the collector once it has been replaced.
    """
    if "vllm.v1.engine.async_llm" in sys.modules:
        yield
        return
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        gc.freeze()
        # Else the interpreter cannot free it when it ends either, and libraries of vLLM's then report dozens of leaks.
        atexit.register(gc.unfreeze)
        gc.set_threshold(young, middle, old)
