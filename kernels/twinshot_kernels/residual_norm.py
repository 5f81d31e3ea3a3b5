"""Residual and the norm behind it: ``x' = x + y``, ``h = x' / sqrt(mean(x'^2) + eps) * scale``.

The form of the text encoders. Apart, the sum and the norm move five tensors; together four: ``x`` and
``y`` are read, ``x'`` and ``h`` written. The fp8 form writes ``h`` in one byte an element. The norm reads
``x'`` after it was rounded, because that is what the next block will see.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import check_same_shape, check_vector
from twinshot_kernels.quantize_rows import quantize_rows_reference
from twinshot_kernels.rms_norm import normalise


def residual_norm_reference(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add and normalise in plain torch; see :func:`residual_norm`."""
    total = (x.float() + y.float()).to(x.dtype).contiguous()
    return total, normalise(total, scale, eps).to(x.dtype)


def residual_norm_fp8_reference(
    x: Tensor, y: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Add, normalise and quantise in plain torch; see :func:`residual_norm_fp8`."""
    total = (x.float() + y.float()).to(x.dtype).contiguous()
    return total, *quantize_rows_reference(normalise(total, scale, eps))


_residual_norm = register("residual_norm", residual_norm_reference, residual_norm_reference)
_residual_norm_fp8 = register("residual_norm_fp8", residual_norm_fp8_reference, residual_norm_fp8_reference)


def residual_norm(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum for the next one.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch; both may have strided rows.
        scale: ``[N]``, or ``[B, 1, N]`` beside ``[B, rows, N]``; any floating type.
        eps: added to the mean square.

    Returns:
        The new stream and its scaled norm, both of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_same_shape("y", y, x)
    check_vector("scale", scale, x)
    if needs_gradient(x, y, scale):
        return residual_norm_reference(x, y, scale, eps)
    result: tuple[Tensor, Tensor] = _residual_norm(x, y, scale, eps)
    return result


def residual_norm_fp8(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`residual_norm`, with the norm quantised to fp8 by row.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch.
        scale: ``[N]`` or ``[B, 1, N]``.
        eps: added to the mean square.

    Returns:
        The new stream; ``[..., N]`` E4M3; ``[..., 1]`` fp32 row scales.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_same_shape("y", y, x)
    check_vector("scale", scale, x)
    if needs_gradient(x, y, scale):
        return residual_norm_fp8_reference(x, y, scale, eps)
    result: tuple[Tensor, Tensor, Tensor] = _residual_norm_fp8(x, y, scale, eps)
    return result
