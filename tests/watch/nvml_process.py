"""Run as a program by the tests here: the real `pynvml` in a process whose loader finds the fake NVML.

In a process of its own, because a preloaded fake would make everything else in the test process see a GPU.
Takes one command a line (`read NOW_S` and `reopen` for the reader; `start`, `fresh TIMEOUT_S`, `latest` and `stop` for
the watch) and answers each with one pickle.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import time

from node.watch.nvml import NvmlReader
from node.watch.values import GpuSnapshot, GpuWatchState
from node.watch.watch import GpuWatch


async def main() -> None:
    reader = NvmlReader()
    watch = GpuWatch(NvmlReader(), time.monotonic, interval_s=0.02, stop_timeout_s=0.2)
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer: GpuWatchState | tuple[GpuSnapshot, ...] | None = None
        match line.split():
            case ["read", now_s]:
                answer = reader.read(float(now_s))
            case ["reopen"]:
                reader.close()
            case ["start"]:
                watch.start()
            case ["fresh", timeout_s]:
                answer = await watch.fresh(float(timeout_s))
            case ["latest"]:
                answer = watch.latest()
            case ["stop"]:
                await watch.stop()
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
