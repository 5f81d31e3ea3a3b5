"""What this machine has: memory, GPUs and their driver. Importing this imports torch."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch

_DRIVER = Path("/proc/driver/nvidia/version")
_MEMORY = Path("/proc/meminfo")


def device_name(device: torch.device) -> str:
    """What people call the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device, or for the CPU on this machine; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def gpus() -> list[str]:
    """The usable GPUs with their compute capability."""
    if not torch.cuda.is_available():
        return []
    return [
        f"{torch.cuda.get_device_name(index)}, compute capability "
        + ".".join(map(str, torch.cuda.get_device_capability(index)))
        for index in range(torch.cuda.device_count())
    ]


def driver() -> str | None:
    """The version of NVIDIA's driver; `unknown` if only its tools are there, None if there is none."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text())
    except OSError:
        return "unknown" if shutil.which("nvidia-smi") else None
    return found[0] if found else "unknown"


def in_words(size: int | None) -> str:
    """Bytes for people, such as 27.4 MB."""
    if size is None:
        return "unknown"
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{size} B"
