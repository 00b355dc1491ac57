"""What is known of the server's GPUs, as plain values. None always means "not known", never 0."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """One process holding memory on a GPU. Inside a container NVML gives the host's process ids, or none at all."""

    pid: int
    vram_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSnapshot:
    """One GPU at `sampled_at_s` (monotonic seconds). `index` is NVML's, in PCI bus order.

    `vram_used_bytes` leaves out what the driver keeps for itself (as `nvidia-smi` does), so used + free may be
    less than the total. `utilisation` is the share of the last sample period with a kernel running, 0 to 1.
    With `mig` on, memory and utilisation are None: the card's figures do not bound any one instance.
    `problem` says in words why nothing can be read from this GPU; it is None while the GPU answers.
    """

    index: int
    sampled_at_s: float
    uuid: str | None = None
    name: str | None = None
    vram_total_bytes: int | None = None
    vram_used_bytes: int | None = None
    vram_free_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    utilisation: float | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    mig: bool | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWatchState:
    """Everything the watch knows. `gpus` is () when there is no GPU to be seen and None when that is not known now.

    `reason` says in words why `gpus` is empty or None, and is None otherwise.
    """

    gpus: tuple[GpuSnapshot, ...] | None
    reason: str | None = None
    driver_version: str | None = None
    sampled_at_s: float | None = None


def free_bytes_for(
    gpus: tuple[GpuSnapshot, ...] | None, visible: str | None = None, count: int | None = None
) -> int | None:
    """The free bytes of the fullest GPU an engine uses, or None when that is not known of each of them.

    `visible` is the engine's CUDA_VISIBLE_DEVICES (None: every GPU), as indices or `GPU-…` ids; `count` how many of
    those it takes, from the first on (tensor times pipeline parallel; None: all). The minimum, because each rank
    needs the same share of its own card. Indices are matched as NVML counts them, which CUDA
    does only under CUDA_DEVICE_ORDER=PCI_BUS_ID or when all cards are alike.
    """
    if not gpus:
        return None
    chosen = gpus_for(gpus, visible, count)
    if count is not None and len(chosen) < count:
        return None
    free = [gpu.vram_free_bytes if gpu is not None else None for gpu in chosen]
    known = [value for value in free if value is not None]
    return min(known) if known and len(known) == len(free) else None


def gpus_for(
    gpus: tuple[GpuSnapshot, ...], visible: str | None = None, count: int | None = None
) -> tuple[GpuSnapshot | None, ...]:
    """The GPUs an engine uses, as `free_bytes_for` is told; None for one that is named and not to be found."""
    chosen: tuple[GpuSnapshot | None, ...] = gpus
    if visible is not None:
        chosen = tuple(_find(gpus, entry.strip()) for entry in visible.split(","))
    return chosen if count is None else chosen[:count]


def _find(gpus: tuple[GpuSnapshot, ...], entry: str) -> GpuSnapshot | None:
    """CUDA accepts an unambiguous beginning of a GPU id, so this does too."""
    if entry.startswith("GPU-"):
        matches = [gpu for gpu in gpus if gpu.uuid is not None and gpu.uuid.startswith(entry)]
    else:
        matches = [gpu for gpu in gpus if str(gpu.index) == entry]
    return matches[0] if len(matches) == 1 else None
