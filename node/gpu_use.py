"""How busy this host's GPUs are, as NVIDIA's management library tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU at this moment.

    Attributes
    ----------
    index
    busy_ratio
        Share of the last sample period in which something ran on it, 0 to 1.
    memory_used_bytes
    """

    index: int
    busy_ratio: float
    memory_used_bytes: int


def gpu_use() -> list[GpuUse]:
    """Look at every GPU; none where there is no driver, or the library is not installed."""
    try:
        import pynvml  # noqa: PLC0415  comes with the extras for GPUs

        pynvml.nvmlInit()
    except ImportError:
        return []
    except pynvml.NVMLError:
        return []
    try:
        return [_use_of(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _use_of(nvml: Any, index: int) -> GpuUse:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuUse(index, rates.gpu / 100, int(memory.used))
