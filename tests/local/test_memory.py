"""Whether there is memory for an engine: what is said where there is not; and not knowing holds nothing up."""

import time
from dataclasses import dataclass, field, replace

import pytest

from node.catalogue import LocalModel
from node.errors import EngineUnavailable
from node.local.memory import shortage, wait_for_memory
from node.watch.values import GpuProcess, GpuSnapshot, GpuWatchState

GIB = 1 << 30
MODEL = LocalModel(source="m", revision=None, context_tokens=4096, capabilities=frozenset())
FREE = GpuSnapshot(index=0, sampled_at_s=0.0, vram_total_bytes=80 * GIB, vram_free_bytes=79 * GIB)
TAKEN = replace(FREE, vram_free_bytes=10 * GIB, processes=(GpuProcess(pid=4711, vram_bytes=None),))


@dataclass
class Watch:
    """Gives one state after the other, then the last one for ever."""

    states: list[tuple[GpuSnapshot, ...] | None]
    asked: int = field(default=0)

    async def fresh(self, timeout_s: float) -> GpuWatchState:
        self.asked += 1
        gpus = self.states[min(self.asked, len(self.states)) - 1]
        return GpuWatchState(gpus=gpus, reason=None if gpus else "NVML library not found")


async def wait(watch: Watch, within_s: float = 30.0, *, cuda: bool = True) -> None:
    await wait_for_memory(watch, None, MODEL, time.monotonic, within_s, lambda: cuda)


async def test_row_63_start_with_too_little_vram_is_refused_naming_who_holds_it() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        await wait(Watch([(TAKEN,)]), within_s=0.0)
    for word in ("GPU 0", "10.0 of 80.0 GiB free", "73.6 GiB", "gpu_memory_utilization 0.92", "4711"):
        assert word in caught.value.message


async def test_memory_that_comes_back_is_waited_for() -> None:
    watch = Watch([(TAKEN,), (FREE,)])
    await wait(watch)
    assert watch.asked == 2


@pytest.mark.parametrize("gpus", [(), None])
async def test_row_64_without_an_answer_from_nvml_nothing_is_waited_for(
    gpus: tuple[GpuSnapshot, ...] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    watch = Watch([gpus])
    await wait(watch)
    assert watch.asked == 1
    assert "NVML library not found" in caplog.text


async def test_engine_on_the_cpu_does_not_mind_a_full_gpu() -> None:
    await wait(Watch([(TAKEN,)]), cuda=False)


@pytest.mark.parametrize(
    "gpu",
    [
        replace(TAKEN, vram_free_bytes=None),
        replace(TAKEN, vram_total_bytes=None),
        replace(TAKEN, vram_total_bytes=None, vram_free_bytes=None, mig=True),
        replace(TAKEN, vram_total_bytes=None, vram_free_bytes=None, problem="GPU is lost"),
    ],
)
def test_row_64_figures_that_are_not_known_are_no_shortage(gpu: GpuSnapshot) -> None:
    assert shortage((gpu,), None, MODEL) is None


def test_only_the_cards_the_engine_uses_count() -> None:
    cards = (FREE, replace(TAKEN, index=1))
    assert shortage(cards, None, MODEL) is None
    assert shortage(cards, "1", MODEL) is not None
    assert shortage(cards, None, replace(MODEL, engine_args={"tensor_parallel_size": 2})) is not None
    assert shortage(cards, "1", replace(MODEL, engine_args={"gpu_memory_utilization": 0.1})) is None
