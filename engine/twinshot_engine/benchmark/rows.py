"""Result rows: flat dictionaries that say what was measured, on which GPU, with which versions and when."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

_PACKAGES = ("torch", "triton", "transformers", "diffusers")


def facts(device: torch.device) -> Row:
    """GPU, versions, commit and date, which every row carries."""
    return {
        "gpu": gpu_name(device),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def gpu_name(device: torch.device) -> str:
    """The GPU's name, or which CPU did the work in its stead."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"none ({models[0] if models else platform.machine()}, {os.cpu_count()} cores)"


def versions() -> str:
    """Versions of python and of the packages that decide speed."""
    found = [f"{name} {number}" for name in _PACKAGES if (number := _version(name))]
    return ", ".join([f"python {platform.python_version()}", *found])


def commit() -> str:
    """The checked-out commit, marked if files differ from it; TWINSHOT_COMMIT where there is no git."""
    git = shutil.which("git")
    if git is None or "TWINSHOT_COMMIT" in os.environ:
        return os.environ.get("TWINSHOT_COMMIT", "unknown")
    command = [
        git,
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=10",
        "--exclude=*",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return done.stdout.strip() or "unknown"


def quantiles(milliseconds: Sequence[float]) -> Row:
    """Median and 95th percentile (nearest rank)."""
    ranked = sorted(milliseconds)
    p95 = ranked[max(0, -(-95 * len(ranked) // 100) - 1)]
    return {
        "median_ms": round(statistics.median(ranked), 3),
        "p95_ms": round(p95, 3),
        "samples": len(ranked),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
