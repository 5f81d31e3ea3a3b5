"""Rowwise fp8: ``scale = max|x| / 448``, ``y = e4m3(x / scale)``.

448 is the largest E4M3 value, so each row uses the whole range and nothing is clipped. This pass is for
tensors that no other kernel of this package makes; the others quantise what they hold already. It must
read ``x`` once and write half as many bytes.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register

FP8_MAX = 448.0
# A row of zeros needs a scale whose inverse is finite.
SMALLEST_AMAX = 1e-12


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows in plain torch; see :func:`quantize_rows`."""
    wide = x.float()
    amax = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_AMAX)
    values = (wide * (FP8_MAX / amax)).to(torch.float8_e4m3fn)
    return values.contiguous(), (amax / FP8_MAX).contiguous()


_quantize_rows = register("quantize_rows", quantize_rows_reference, quantize_rows_reference)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row to fp8 with its own scale.

    Args:
        x: ``[..., K]``, any floating type; rows may be strided.

    Returns:
        ``[..., K]`` E4M3 and ``[..., 1]`` fp32 scales; their product is ``x`` to fp8 rounding.

    Source: Micikevicius et al., arXiv 2209.05433 (the format).
    """
    if needs_gradient(x):
        return quantize_rows_reference(x)
    result: tuple[Tensor, Tensor] = _quantize_rows(x)
    return result
