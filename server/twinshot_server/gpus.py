"""How many GPUs there are for replicas, asked of the driver: torch would take seconds to be imported."""

from __future__ import annotations

import ctypes

from twinshot_server.settings import Settings

_DRIVER = "libcuda.so.1"


def count_replicas(settings: Settings) -> int:
    """The engine processes that the settings ask for: with `auto` one a GPU, or one on the CPU."""
    if settings.replicas != "auto":
        return settings.replicas
    return max(1, count_gpus()) if settings.device in {"auto", "cuda"} else 1


def count_gpus() -> int:
    """The GPUs that CUDA lets this process use, as `CUDA_VISIBLE_DEVICES` has it; 0 without a driver."""
    try:
        cuda = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int()
    usable = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if usable else 0
