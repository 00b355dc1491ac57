"""The watch around a reader: how old an answer may be, who waits for what, and how it ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from node.watch.values import GpuSnapshot, GpuWatchState, free_bytes_for
from node.watch.watch import GpuWatch


class Clock:
    """Virtual monotonic time."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Reader:
    """Answers with its count of reads as free bytes; while `open_gate` is clear, a read hangs."""

    def __init__(self) -> None:
        self.reads = 0
        self.read_often = threading.Event()
        self.closed = threading.Event()
        self.open_gate = threading.Event()
        self.open_gate.set()

    def read(self, now_s: float) -> GpuWatchState:
        self.open_gate.wait()
        self.reads += 1
        if self.reads == 5:
            self.read_often.set()
        gpu = GpuSnapshot(index=0, sampled_at_s=now_s, vram_free_bytes=self.reads)
        return GpuWatchState(gpus=(gpu,), driver_version="1.2", sampled_at_s=now_s)

    def close(self) -> None:
        self.closed.set()


def test_nothing_is_known_before_the_first_sample() -> None:
    state = GpuWatch(Reader(), Clock()).state()
    assert state == GpuWatchState(gpus=None, reason="not sampled yet")


def test_sample_that_is_too_old_is_no_longer_given_out() -> None:
    clock = Clock()
    watch = GpuWatch(Reader(), clock, interval_s=2.0, stale_after_intervals=3)
    watch.sample()
    clock.now_s += 6.0
    assert free_bytes_for(watch.latest()) == 1
    clock.now_s += 0.5
    assert watch.latest() is None
    assert watch.state().reason == "no answer from NVML for 6 s"
    watch.sample()
    assert free_bytes_for(watch.latest()) == 2


async def test_watch_samples_by_itself_until_stopped() -> None:
    reader = Reader()
    watch = GpuWatch(reader, Clock(), interval_s=0.001)
    watch.start()
    assert await asyncio.to_thread(reader.read_often.wait, 60)
    await watch.stop()
    assert reader.closed.is_set()
    reads = reader.reads
    assert free_bytes_for(watch.latest()) == reads
    await watch.stop()
    assert free_bytes_for((await watch.fresh(60.0)).gpus) == reads


async def test_fresh_waits_for_a_sample_begun_after_the_question() -> None:
    reader = Reader()
    watch = GpuWatch(reader, Clock(), interval_s=3600.0)
    watch.start()
    first = free_bytes_for((await watch.fresh(60.0)).gpus)
    second = free_bytes_for((await watch.fresh(60.0)).gpus)
    assert first is not None
    assert second is not None
    assert second > first
    many = await asyncio.gather(*(watch.fresh(60.0) for _ in range(20)))
    assert all((free_bytes_for(state.gpus) or 0) > second for state in many)
    await watch.stop()


async def test_hanging_reader_is_left_behind_and_asked_of_in_vain() -> None:
    reader = Reader()
    reader.open_gate.clear()
    watch = GpuWatch(reader, Clock(), stop_timeout_s=0.01)
    watch.start()
    assert await watch.fresh(0.01) == GpuWatchState(gpus=None, reason="no answer from NVML within 0.01 s")
    await watch.stop()
    assert not reader.closed.is_set()
    reader.open_gate.set()
    assert await asyncio.to_thread(reader.closed.wait, 60)


async def test_watch_that_never_started_stops_without_a_word() -> None:
    watch = GpuWatch(Reader(), Clock())
    await watch.stop()
    assert (await watch.fresh(60.0)).reason == "not sampled yet"


def test_watch_starts_once() -> None:
    reader = Reader()
    watch = GpuWatch(reader, Clock())
    watch.start()
    with pytest.raises(RuntimeError):
        watch.start()
    asyncio.run(watch.stop())
    assert reader.closed.is_set()


GPUS = tuple(
    GpuSnapshot(index=index, sampled_at_s=0.0, uuid=uuid, vram_free_bytes=free)
    for index, uuid, free in [(0, "GPU-aa1", 30), (1, "GPU-aa2", 10), (2, "GPU-b", 20), (3, None, None)]
)


@pytest.mark.parametrize(
    ("visible", "count", "free"),
    [
        ("0", None, 30),
        ("0,1", None, 10),
        ("0, 2", None, 20),
        ("0,1", 1, 30),
        ("2,0,1", 2, 20),
        ("GPU-b", None, 20),
        ("GPU-aa2,GPU-b", None, 10),
        (None, 2, 10),
        (None, None, None),  # GPU 3 does not tell
        ("3", None, None),
        ("0", 2, None),
        ("GPU-aa", None, None),  # two match
        ("GPU-zz", None, None),
        ("MIG-aa1", None, None),
        ("7", None, None),
        ("-1", None, None),
        ("", None, None),
    ],
)
def test_free_memory_is_that_of_the_fullest_gpu_in_use(
    visible: str | None, count: int | None, free: int | None
) -> None:
    assert free_bytes_for(GPUS, visible, count) == free


@pytest.mark.parametrize("gpus", [None, ()])
def test_free_memory_without_gpus_is_unknown(gpus: tuple[GpuSnapshot, ...] | None) -> None:
    assert free_bytes_for(gpus) is None
