"""Weights of the judges in eight bits: both are part of every clone, and half precision takes twice as much.

A matrix or convolution becomes int8 with one scale an output channel (``NAME:scale``); what is small stays as
it is. A judge is measured as it is stored, so the rates in its README include the rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

_SCALE = ":scale"
_LEVELS = 127
_SMALLEST_SCALE = 1e-12


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Floating-point tensors as the contents of a safetensors file.

    Raises:
        ValueError: a weight is not finite; the message names it.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach().float().cpu()
        if not bool(value.isfinite().all()):
            raise ValueError(f"the weight {name!r} is not finite")
        if value.ndim < 2:
            packed[name] = value.contiguous()
            continue
        scale = value.flatten(1).abs().amax(1).clamp_min(_SMALLEST_SCALE) / _LEVELS
        packed[name] = (value / _beside(scale, value)).round().char().contiguous()
        packed[name + _SCALE] = scale
    return save(packed)


def unpack(blob: bytes) -> dict[str, Tensor]:
    """The tensors in fp32 again."""
    packed = load(blob)
    return {
        name: value.float() * _beside(packed[name + _SCALE], value)
        if name + _SCALE in packed
        else value.float()
        for name, value in packed.items()
        if not name.endswith(_SCALE)
    }


def read_pinned(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a file, in fp32, if it is the one that was written down.

    Raises:
        ValueError: it is another one.
    """
    blob = path.read_bytes()
    if (found := hashlib.sha256(blob).hexdigest()) != sha256:
        raise ValueError(f"{path} has sha256 {found}, not {sha256}")
    return unpack(blob)


def _beside(scale: Tensor, value: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (value.ndim - 1))
