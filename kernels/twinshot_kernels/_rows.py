"""What the kernels that work on rows share: views, per-image vectors, launch sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """View ``[..., N]`` as ``[rows, N]`` with a contiguous last axis; copies only where no view exists."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def check_vector(name: str, vector: Tensor, x: Tensor) -> None:
    """Refuse a scale or gain that is neither ``[N]`` nor ``[B, 1, N]`` beside ``x`` ``[B, rows, N]``.

    Raises:
        ValueError: naming both shapes.
    """
    shared = vector.shape == x.shape[-1:]
    per_image = x.ndim == 3 and vector.shape == (x.shape[0], 1, x.shape[-1])
    if not (shared or per_image):
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; accepted beside {tuple(x.shape)}: [N] or [B, 1, N]."
        )


def check_same_shape(name: str, y: Tensor, x: Tensor) -> None:
    """Refuse ``y`` if its shape is not that of ``x``.

    Raises:
        ValueError: naming both shapes.
    """
    if y.shape != x.shape:
        raise ValueError(f"{name} has shape {tuple(y.shape)}; accepted: {tuple(x.shape)}.")


def empty_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Make room for the rows of ``x`` in fp8, and for their scales."""
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return values, torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
