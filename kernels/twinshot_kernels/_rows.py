"""What the kernels that work on rows share: one program a row, which it holds in registers.

Below, ``row`` is 64 bits wide, because a batch of rows may pass 2^31 elements; ``columns`` is the arange over
a row, padded to a power of two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from twinshot_kernels._triton import jit, tl, triton

ELEMENTS_PER_WARP = 512
# A norm that is quantised waits for two sums over the row one after the other; fewer warps wait less.
ELEMENTS_PER_QUANTISING_WARP = 1024
MAX_WARPS = 16


@jit
def load_row(x: tl.tensor, start: tl.tensor, columns: tl.tensor, width: int) -> tl.tensor:
    """Load a row, or a vector as long as one, in fp32; zeros pad it."""
    return tl.load(x + start + columns, mask=columns < width, other=0.0).to(tl.float32)


@jit
def scaled_norm(x: tl.tensor, scale: tl.tensor, width: int, eps: float) -> tl.tensor:
    """Normalise a row by its root mean square and scale it."""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps) * scale


@jit
def shifted_norm(
    x: tl.tensor, scale: tl.tensor, shift: tl.tensor, columns: tl.tensor, width: int, eps: float
) -> tl.tensor:
    """Normalise a row by mean and standard deviation, scale it and shift it."""
    centred = tl.where(columns < width, x - tl.sum(x, axis=0) / width, 0.0)
    return centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps) * scale + shift


@jit
def store_row(
    h: tl.tensor, out: tl.tensor, row_scale: tl.tensor | None, row: tl.tensor, columns: tl.tensor, width: int
) -> None:
    """Store a row in the type of ``out``; if there is room for scales, quantise it and store its own."""
    if row_scale is not None:
        amax = tl.maximum(tl.max(tl.abs(h), axis=0), 1e-12)
        h = h * tl.div_rn(448.0, amax)
        tl.store(row_scale + row, tl.div_rn(amax, 448.0))
    tl.store(out + row * width + columns, h.to(out.dtype.element_ty), mask=columns < width)


def row_tile(width: int, per_warp: int = ELEMENTS_PER_WARP) -> dict[str, Any]:
    """Choose the block and the warps of a program that holds a row of ``width`` elements."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(max(block // per_warp, 1), MAX_WARPS)}


def as_rows(x: Tensor) -> Tensor:
    """View ``[..., N]`` as ``[rows, N]`` with a contiguous last axis; copies only where no view exists."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def as_vector(vector: Tensor) -> tuple[Tensor, int]:
    """Make the last axis of ``[N]`` or ``[B, 1, N]`` contiguous; return its step from image to image too."""
    if vector.stride(-1) != 1:
        vector = vector.contiguous()
    shared = vector.ndim == 1 or vector.shape[0] == 1
    return vector, 0 if shared else vector.stride(0)


def rows_per_image(x: Tensor) -> int:
    """Count the rows of ``[..., rows, N]`` that belong to one image."""
    return x.shape[-2] if x.ndim > 1 else 1


def empty_rows(x: Tensor) -> Tensor:
    """Make room for the rows of ``x`` in its own type."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def empty_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Make room for the rows of ``x`` in fp8, and for their scales."""
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return values, torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)


def check_vector(name: str, vector: Tensor, x: Tensor) -> None:
    """Refuse a scale or gain that is neither ``[N]`` nor ``[B or 1, 1, N]`` beside ``x`` ``[B, rows, N]``.

    Raises:
        ValueError: naming both shapes.
    """
    shared = vector.shape == x.shape[-1:]
    images = (1, x.shape[0])
    per_image = (
        x.ndim == vector.ndim == 3 and vector.shape[0] in images and vector.shape[1:] == (1, x.shape[-1])
    )
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
