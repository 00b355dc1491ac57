"""The edge to NVML: every NVML error becomes a None or a sentence here, and goes no further."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from node.watch.values import GpuProcess, GpuSnapshot, GpuWatchState

# After one of these the handle is of no use: the GPU fell off the bus, was reset, or the driver went away.
_GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
    }
)
# The driver is too old for this call.
_TOO_OLD = frozenset({pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH})
# This GPU, or this user, never gets this figure: nothing is wrong with the card.
_WITHHELD = _TOO_OLD | {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION}

_SENTENCES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "NVML library not found: no NVIDIA driver, or a container without GPUs",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA driver not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVML and the loaded NVIDIA driver differ in version: reboot",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to use the NVIDIA driver",
    pynvml.NVML_ERROR_GPU_IS_LOST: "GPU is lost (fell off the bus): it needs a reset or a reboot",
    pynvml.NVML_ERROR_RESET_REQUIRED: "GPU needs a reset",
}

# NVML has no NaN; its "no value" is all ones, and a sick card gives worse. Anything outside these is not believed.
_MAX_VRAM_BYTES = 1 << 50
_MAX_POWER_W = 10_000
_TEMPERATURES_C = range(-40, 151)

_Memory = tuple[int | None, int | None, int | None]


@dataclass(frozen=True, slots=True)
class _Device:
    """A GPU as found when the session was opened. `handle` is None when NVML would not give one."""

    index: int
    handle: Any = None
    uuid: str | None = None
    name: str | None = None
    mig: bool | None = None
    problem: str | None = None


class NvmlReader:
    """Reads all GPUs through `pynvml`. For one thread only; its calls may block for as long as the driver likes.

    A GPU that was lost or reset, or a driver that was missing, is looked for anew every `reopen_after_s` seconds (not
    at every read: opening NVML takes seconds on large servers), while the other GPUs go on being read.
    """

    def __init__(self, reopen_after_s: float = 10.0) -> None:
        self._reopen_after_s = reopen_after_s
        self._reopen_at_s: float | None = -math.inf
        self._initialised = False
        self._devices: tuple[_Device, ...] = ()
        self._reason: str | None = None
        self._driver_version: str | None = None

    def read(self, now_s: float) -> GpuWatchState:
        """One sample of every GPU, stamped `now_s`. NVML's errors end up in `reason`, `problem` or a None."""
        if self._reopen_at_s is not None and now_s >= self._reopen_at_s:
            self._open()
            self._reopen_at_s = None
        gpus = tuple(_sample(device, now_s) for device in self._devices)
        if self._reopen_at_s is None and (not gpus or any(gpu.problem for gpu in gpus)):
            self._reopen_at_s = now_s + self._reopen_after_s
        return GpuWatchState(gpus=gpus, reason=self._reason, driver_version=self._driver_version, sampled_at_s=now_s)

    def close(self) -> None:
        """Give the NVML session back. Reading again opens a new one."""
        self._devices = ()
        self._reopen_at_s = -math.inf
        if self._initialised:
            self._initialised = False
            _optional(pynvml.nvmlShutdown, _NOTHING)

    def _open(self) -> None:
        self.close()
        self._driver_version = None
        try:
            pynvml.nvmlInit()
            self._initialised = True
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._reason = _sentence(error)
            return
        self._driver_version = _text(pynvml.nvmlSystemGetDriverVersion)
        self._devices = tuple(_open_device(index) for index in range(count))
        self._reason = None if count else "the NVIDIA driver sees no GPU"


_NOTHING: frozenset[int] = frozenset()


def _open_device(index: int) -> _Device:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return _Device(index, problem=_sentence(error))
    mode = _optional(lambda: pynvml.nvmlDeviceGetMigMode(handle), _NOTHING)
    return _Device(
        index,
        handle,
        uuid=_text(lambda: pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(lambda: pynvml.nvmlDeviceGetName(handle)),
        mig=None if mode is None else mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
    )


def _sample(device: _Device, now_s: float) -> GpuSnapshot:
    handle = device.handle
    problem = device.problem
    if problem is None:
        try:
            total, used, free = (None, None, None) if device.mig else _memory(handle)
            return GpuSnapshot(
                index=device.index,
                sampled_at_s=now_s,
                uuid=device.uuid,
                name=device.name,
                vram_total_bytes=total,
                vram_used_bytes=used,
                vram_free_bytes=free,
                processes=_processes(handle, total),
                utilisation=None if device.mig else _utilisation(handle),
                temperature_c=_temperature_c(handle),
                power_w=_power_w(handle),
                mig=device.mig,
            )
        except pynvml.NVMLError as error:
            problem = _sentence(error)
    return GpuSnapshot(
        index=device.index,
        sampled_at_s=now_s,
        uuid=device.uuid,
        name=device.name,
        mig=device.mig,
        problem=problem,
    )


def _memory(handle: Any) -> _Memory:
    """Total, used and free bytes. Raises NVMLError when the GPU should answer and does not."""
    try:
        try:
            info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        except pynvml.NVMLError as error:
            if error.value not in _TOO_OLD:
                raise
            info = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        if error.value in _WITHHELD:
            return None, None, None
        raise
    if not 0 < info.total < _MAX_VRAM_BYTES:
        return None, None, None
    if info.used + info.free > info.total:  # one of the two is wrong, and nothing says which
        return info.total, None, None
    return info.total, info.used, info.free


def _processes(handle: Any, total_bytes: int | None) -> tuple[GpuProcess, ...] | None:
    """Every process on the GPU, by pid. One with both a compute and a graphics context is listed once."""
    compute = _optional(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle))
    if compute is None:
        return None
    graphics = _optional(lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle)) or []
    held: dict[int, int | None] = {}
    for process in (*compute, *graphics):
        size: int | None = process.usedGpuMemory
        if size is not None and size > (total_bytes or _MAX_VRAM_BYTES):
            size = None
        known = held.get(process.pid)
        held[process.pid] = known if size is None else max(size, known or 0)
    return tuple(GpuProcess(pid=pid, vram_bytes=size) for pid, size in sorted(held.items()))


def _utilisation(handle: Any) -> float | None:
    rates = _optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
    return rates.gpu / 100 if rates is not None and rates.gpu <= 100 else None


def _temperature_c(handle: Any) -> int | None:
    sensor = pynvml.NVML_TEMPERATURE_GPU
    value = _optional(lambda: pynvml.nvmlDeviceGetTemperatureV(handle, sensor))
    if value is None:  # drivers older than nvmlDeviceGetTemperatureV
        value = _optional(lambda: pynvml.nvmlDeviceGetTemperature(handle, sensor))
    return value if value in _TEMPERATURES_C else None


def _power_w(handle: Any) -> float | None:
    milliwatts = _optional(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
    return milliwatts / 1000 if milliwatts is not None and milliwatts <= _MAX_POWER_W * 1000 else None


def _optional(call: Callable[[], Any], fatal: frozenset[int] = _GONE) -> Any:
    """The call's value, or None when NVML will not give it. Raises NVMLError only for the `fatal` codes."""
    try:
        return call()
    except pynvml.NVMLError as error:
        if error.value in fatal:
            raise
        return None


def _text(call: Callable[[], Any]) -> str | None:
    """A name or version, or None when NVML will not give it or gives bytes that are no text."""
    try:
        return _optional(call, _NOTHING) or None
    except UnicodeDecodeError:
        return None


def _sentence(error: pynvml.NVMLError) -> str:
    return _SENTENCES.get(error.value, f"NVML error {error.value}: {error}")
