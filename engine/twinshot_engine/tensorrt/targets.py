"""Which GPUs an engine is for, and which precisions they compute in."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.tensorrt.library import Library

PRECISIONS = ("fp32", "bf16", "fp16", "fp8")
_FIRST = {"fp32": 0, "bf16": 80, "fp16": 0, "fp8": 89}
"""The first compute capability, times ten, that computes in a precision."""

_ALONE = "sm_75"
"""TensorRT for RTX builds for Turing in an engine of its own."""


def current_target(device: torch.device) -> str:
    """Name the GPU at hand, as ``sm_89``.

    Raises:
        EngineFilesError: the device is no GPU.
    """
    if device.type != "cuda":
        raise EngineFilesError(f"Engines of TensorRT run on a GPU, not on {str(device)!r}.")
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def choose_targets(library: Library, wanted: Sequence[str], precision: str) -> tuple[str, ...]:
    """Check the GPUs to build for, or choose them if none are named.

    Args:
        library: what builds. TensorRT builds for the GPU at hand alone.
        wanted: such as ``sm_89``; empty for every GPU that one engine can be for.
        precision: of the engines.

    Raises:
        EngineFilesError: the library does not build for one of them, or it lacks the precision.
    """
    known = known_targets(library)
    if unknown := [target for target in wanted if target not in known]:
        raise EngineFilesError(
            f"{library.name} {library.version} does not build for {unknown[0]!r} here: "
            f"{', '.join(known)} are accepted."
        )
    chosen = tuple(wanted) or tuple(each for each in known if each != _ALONE and _computes(each, precision))
    if unable := [target for target in chosen if not _computes(target, precision)]:
        able = [target for target in known if _computes(target, precision)]
        raise EngineFilesError(
            f"{unable[0]} does not compute in {precision}: {', '.join(able) or 'no GPU here'} does."
        )
    if _ALONE in chosen and len(chosen) > 1:
        raise EngineFilesError(f"{_ALONE} shares no engine with {chosen[1]}: build for it alone.")
    return tuple(sorted(set(chosen), key=_number))


def known_targets(library: Library) -> tuple[str, ...]:
    """The GPUs that the library can build for on this machine.

    Raises:
        EngineFilesError: it builds for the GPU at hand, and there is none.
    """
    if not library.builds_ahead:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return (current_target(device),)
    names = library.api.ComputeCapability.__members__
    return tuple(f"sm_{name[2:]}" for name in names if name.startswith("SM"))


def _computes(target: str, precision: str) -> bool:
    return _number(target) >= _FIRST[precision]


def _number(target: str) -> int:
    return int(target.removeprefix("sm_"))
