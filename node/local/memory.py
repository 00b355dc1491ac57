"""Whether a GPU has the memory an engine will want, and waiting for it to come back after the last one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from node.catalogue import LocalModel
from node.errors import EngineUnavailable
from node.local.arguments import cuda_available
from node.watch.values import GpuSnapshot, GpuWatchState, gpus_for

_log = logging.getLogger(__name__)
_GIB = 1 << 30
# vLLM's default for gpu_memory_utilization, as of 0.32.
_SHARE = 0.92
_LOOK_EVERY_S = 0.5
_ANSWER_WITHIN_S = 2.0


class Watch(Protocol):
    """What is needed of `GpuWatch`."""

    async def fresh(self, timeout_s: float) -> GpuWatchState:
        """A sample begun after this call."""


def shortage(gpus: tuple[GpuSnapshot, ...] | None, visible: str | None, model: LocalModel) -> str | None:
    """What keeps an engine for `model` from starting, in words; None when there is room, or nobody knows.

    vLLM refuses to start where less than its share of the whole card is free, and says so only in its child's log.
    """
    arguments = model.engine_args
    count = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
    share = float(arguments.get("gpu_memory_utilization", _SHARE))
    for gpu in gpus_for(gpus or (), visible, count):
        if gpu is None or gpu.vram_total_bytes is None or gpu.vram_free_bytes is None:
            continue
        wanted_bytes = share * gpu.vram_total_bytes
        if gpu.vram_free_bytes < wanted_bytes:
            holders = ", ".join(str(process.pid) for process in gpu.processes or ())
            free_gib, total_gib = gpu.vram_free_bytes / _GIB, gpu.vram_total_bytes / _GIB
            return (
                f"GPU {gpu.index} has {free_gib:.1f} of {total_gib:.1f} GiB free, and the engine takes "
                f"{wanted_bytes / _GIB:.1f} GiB (gpu_memory_utilization {share:g}); held by "
                f"{f'process {holders}' if holders else 'a process that NVML does not name'}"
            )
    return None


async def wait_for_memory(
    watch: Watch,
    visible: str | None,
    model: LocalModel,
    clock: Callable[[], float],
    within_s: float,
    on_cuda: Callable[[], bool] = cuda_available,
) -> None:
    """Return once there is memory for `model`, or where that cannot be known.

    Raises `EngineUnavailable`, naming who holds it, when there is not enough within `within_s` seconds. `on_cuda` is
    asked, in a thread, before that is held against an engine: one that runs on the CPU does not mind.
    """
    until_s = clock() + within_s
    while True:
        state = await watch.fresh(_ANSWER_WITHIN_S)
        if not state.gpus:
            _log.info("no GPU memory to wait for: %s", state.reason)
            return
        lacking = shortage(state.gpus, visible, model)
        if lacking is None or not await asyncio.to_thread(on_cuda):
            return
        if clock() >= until_s:
            raise EngineUnavailable(lacking)
        await asyncio.sleep(_LOOK_EVERY_S)
