"""The GPUs as NVML tells of them, read when somebody scrapes. What is not known is left out, never 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.watch.values import GpuSnapshot, GpuWatchState

_FIGURES: tuple[tuple[str, str, Callable[[GpuSnapshot], float | None]], ...] = (
    ("spillway_vram_total_bytes", "VRAM there is.", lambda gpu: gpu.vram_total_bytes),
    (
        "spillway_vram_used_bytes",
        "VRAM in use. vLLM takes its KV cache at the start: this hardly moves with the load.",
        lambda gpu: gpu.vram_used_bytes,
    ),
    ("spillway_vram_free_bytes", "VRAM free.", lambda gpu: gpu.vram_free_bytes),
    ("spillway_gpu_utilization_ratio", "Share of the time with a kernel running, 0 to 1.", lambda gpu: gpu.utilisation),
    ("spillway_gpu_temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temperature_c),
    ("spillway_gpu_power_watts", "Power that the GPU draws.", lambda gpu: gpu.power_w),
    ("spillway_gpu_up", "1 while NVML can read the GPU.", lambda gpu: float(gpu.problem is None)),
)


class GpuMetrics(Collector):
    """`gpus` gives what the watch saw last. The label is NVML's index; there is nothing where there is no GPU."""

    def __init__(self, gpus: Callable[[], GpuWatchState]) -> None:
        self._gpus = gpus

    def collect(self) -> Iterable[Metric]:
        """The families as they stand."""
        seen = self._gpus().gpus or ()
        for name, help_text, figure in _FIGURES:
            family = GaugeMetricFamily(name, help_text, labels=["gpu"])
            for gpu in seen:
                if (value := figure(gpu)) is not None:
                    family.add_metric([str(gpu.index)], value)
            yield family
