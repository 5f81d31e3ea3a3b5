"""`twinshot doctor`: what is wrong with this machine and installation, and what to do. Imports torch."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from twinshot_engine.config import BUILTIN
from twinshot_engine.errors import CheckpointError
from twinshot_engine.random_weights import PREFIX
from twinshot_kernels import attention_backend, rms_norm, rms_norm_reference
from twinshot_kernels._triton import HAS_TRITON
from twinshot_server import __version__
from twinshot_server.inspection import inspect
from twinshot_server.machine import driver, gpus, in_words
from twinshot_server.rehearsal import StartError, rehearse_start
from twinshot_server.settings import Settings, SettingsError

_SCARCE_DISK = 10_000_000_000
_COMPILERS = (os.environ.get("CC", "cc"), "gcc", "clang")
_HEAD_DIMS = {"transformer": 128, "decoder": 512}


class Status(StrEnum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"
    """Works, but could be better, or could not be told."""
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it if anything is to be done."""

    check: str
    status: Status
    found: str
    advice: str = ""


def examine(
    settings: Settings, report: Callable[[str, float], None], *, start: bool = False
) -> Iterator[Finding]:
    """Run every check, telling `report` which comes next; `start` an engine last, if asked for."""
    checks: Sequence[tuple[str, Callable[[], Iterator[Finding]]]] = (
        ("versions", check_versions),
        ("gpu", check_gpu),
        ("kernels", check_kernels),
        ("attention", check_attention),
        ("checkpoint", lambda: check_checkpoint(settings)),
        ("caches", check_caches),
        *([("cold start", lambda: check_start(settings, report))] if start else []),
    )
    for done, (name, check) in enumerate(checks):
        report(name, done / len(checks))
        yield from check()


def check_versions() -> Iterator[Finding]:
    """Never a fault: the installer has seen to the versions."""
    triton = "with Triton" if HAS_TRITON else "without Triton"
    python = platform.python_version()
    found = f"twinshot {__version__}, torch {torch.__version__}, {triton}, Python {python}"
    yield Finding("versions", Status.OK, found)


def check_gpu() -> Iterator[Finding]:
    """GPU and driver, and whether this torch can use them."""
    installed, usable = driver(), gpus()
    built = torch.version.cuda
    if usable:
        yield Finding("driver", Status.OK, f"{installed or 'unknown'}, torch is built for CUDA {built}")
        for name in usable:
            yield Finding("gpu", Status.OK, name)
    elif installed is None:
        yield Finding("driver", Status.NOTE, "no NVIDIA driver")
        yield Finding(
            "gpu",
            Status.NOTE,
            "none; pictures are drawn on the CPU",
            "The built-in checkpoint is quick there too; large ones want a GPU.",
        )
    elif built is None:
        advice = "Install torch's CUDA build, as pytorch.org/get-started/locally describes."
        yield Finding("driver", Status.FAULT, f"{installed}, but torch is built for the CPU alone", advice)
    else:
        advice = f"Update the driver to one for CUDA {built}, or check that this process may see a GPU."
        yield Finding(
            "driver", Status.FAULT, f"{installed}, but torch cannot use it: {_why_unusable()}", advice
        )


def _why_unusable() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "it sees no GPU"


def check_kernels() -> Iterator[Finding]:
    """Compile and run every kernel once; on the CPU, run a reference in a kernel's place."""
    if not torch.cuda.is_available():
        x, scale = torch.randn(3, 8), torch.ones(8)
        same = torch.equal(rms_norm(x, scale, 1e-6), rms_norm_reference(x, scale, 1e-6))
        found = "not compiled without a GPU; plain torch runs in their place"
        yield Finding("kernels", Status.OK if same else Status.FAULT, found)
    elif not HAS_TRITON:
        yield Finding(
            "kernels", Status.NOTE, "Triton is not installed; plain torch is slower", "Install triton."
        )
    elif not any(map(shutil.which, _COMPILERS)):
        advice = "Install gcc and Python's headers, or set CC."
        yield Finding("kernels", Status.FAULT, "Triton needs a C compiler and finds none", advice)
    else:
        yield _compile_all()


def _compile_all() -> Finding:
    from twinshot_kernels.benchmark_cases import cases

    first = {case.op: case for case in reversed(list(cases()))}
    failed = {}
    for name, case in first.items():
        try:
            case.call(*case.make())
            torch.cuda.synchronize()
        except Exception as error:  # a compiler may raise anything  # noqa: BLE001
            failed[name] = f"{name}: {' '.join(str(error).split())[:200]}"
    if failed:
        advice = "TWINSHOT_ATTENTION=sdpa and --backend eager avoid some kernels; report the first failure."
        return Finding("kernels", Status.FAULT, "; ".join(failed.values()), advice)
    return Finding("kernels", Status.OK, f"all {len(first)} compile and run")


def check_attention() -> Iterator[Finding]:
    """Which attention each stage takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = {name: attention_backend(torch.bfloat16, dim, device) for name, dim in _HEAD_DIMS.items()}
    except ValueError as error:
        yield Finding("attention", Status.FAULT, str(error), "Unset TWINSHOT_ATTENTION.")
        return
    found = ", ".join(f"{backend} in the {name}" for name, backend in chosen.items())
    advice = "The extra twinshot-server[fa3] is faster here." if chosen["transformer"] == "cudnn" else ""
    yield Finding("attention", Status.NOTE if advice else Status.OK, found, advice)


def check_checkpoint(settings: Settings) -> Iterator[Finding]:
    """The model's files, and whether they fit into memory."""
    try:
        found = inspect(settings)
    except (CheckpointError, SettingsError) as error:
        yield Finding("model files", Status.FAULT, str(error), _how_to_get(settings.checkpoint))
        return
    for problem in found.problems:
        yield Finding("model files", Status.FAULT, problem, _how_to_get(settings.checkpoint))
    if not found.problems:
        stored = sum(part.bytes for part in found.parts)
        yield Finding("model files", Status.OK, f"{found.reference}, {found.family}, {in_words(stored)}")
    if found.need is None or found.free_bytes is None:
        yield Finding("memory", Status.NOTE, found.memory)
        return
    yield Finding(
        "memory",
        Status.OK if found.fits else Status.FAULT,
        found.memory,
        "" if found.fits else "Choose a lower --precision or fewer --sizes, or free memory.",
    )


def _how_to_get(checkpoint: str) -> str:
    if checkpoint == BUILTIN:
        return "Install twinshot-server again."
    if Path(checkpoint).expanduser().exists() or checkpoint.startswith(PREFIX):
        return "Copy the checkpoint again, whole."
    return f"Fetch it with: hf download {checkpoint.partition('@')[0]}"


def check_caches() -> Iterator[Finding]:
    """Whether downloads and compiled kernels can be kept."""
    kernels = os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache")
    caches = {"hub cache": Path(HF_HUB_CACHE), "kernel cache": Path(kernels).expanduser()}
    for name, folder in caches.items():
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        found = f"{folder}, {in_words(free)} free"
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            advice = "Give rights to it, or choose another with HF_HOME or TRITON_CACHE_DIR."
            yield Finding(name, Status.FAULT, f"{folder} cannot be written to", advice)
        elif free < _SCARCE_DISK:
            yield Finding(name, Status.NOTE, found, "Large checkpoints and their kernels may not fit.")
        else:
            yield Finding(name, Status.OK, found)


def check_start(settings: Settings, report: Callable[[str, float], None]) -> Iterator[Finding]:
    """How long a server's engine takes until it can draw, stage by stage."""
    try:
        _, seconds = rehearse_start(settings, report)
    except StartError as error:
        yield Finding("cold start", Status.FAULT, str(error), "See to what is at fault above first.")
        return
    stages = ", ".join(f"{stage} {each:.1f}" for stage, each in seconds.items())
    yield Finding("cold start", Status.OK, f"{sum(seconds.values()):.1f} s: {stages}")
