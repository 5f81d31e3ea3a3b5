"""Gated, normalised residual and the norm behind it, as Z-Image's blocks end and begin.

``x' = x + gain * y / sqrt(mean(y^2) + eps)``, ``h = x' / sqrt(mean(x'^2) + eps) * scale``, where ``gain`` is
``tanh(gate) * weight`` and ``scale`` is ``weight' * (1 + modulation)`` of the next sub-layer, both folded at
load. Plain torch moves 41 tensors the size of ``x`` for this; it must move four: ``x`` and ``y`` are read,
``x'`` and ``h`` written. The fp8 form writes ``h`` in one byte an element. The second norm reads ``x'``
after it was rounded, because that is what the next block will see.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import check_same_shape, check_vector
from twinshot_kernels.quantize_rows import quantize_rows_reference
from twinshot_kernels.rms_norm import normalise


def gated_residual_norm_reference(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gate, add and normalise in plain torch; see :func:`gated_residual_norm`."""
    total = (x.float() + normalise(y, gain, eps)).to(x.dtype).contiguous()
    return total, normalise(total, scale, eps).to(x.dtype)


def gated_residual_norm_fp8_reference(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, add, normalise and quantise in plain torch; see :func:`gated_residual_norm_fp8`."""
    total = (x.float() + normalise(y, gain, eps)).to(x.dtype).contiguous()
    return total, *quantize_rows_reference(normalise(total, scale, eps))


_gated_residual_norm = register(
    "gated_residual_norm", gated_residual_norm_reference, gated_residual_norm_reference
)
_gated_residual_norm_fp8 = register(
    "gated_residual_norm_fp8", gated_residual_norm_fp8_reference, gated_residual_norm_fp8_reference
)


def _check(x: Tensor, y: Tensor, gain: Tensor, scale: Tensor) -> None:
    check_same_shape("y", y, x)
    check_vector("gain", gain, x)
    check_vector("scale", scale, x)


def gated_residual_norm(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add a normalised, gated branch to the residual stream and normalise the sum for the next one.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch; both may have strided rows.
        gain: ``[N]``, or ``[B, 1, N]`` beside ``[B, rows, N]``; any floating type.
        scale: likewise.
        eps: added to both mean squares.

    Returns:
        The new stream and its scaled norm, both of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(x, y, gain, scale)
    if needs_gradient(x, y, gain, scale):
        return gated_residual_norm_reference(x, y, gain, scale, eps)
    result: tuple[Tensor, Tensor] = _gated_residual_norm(x, y, gain, scale, eps)
    return result


def gated_residual_norm_fp8(
    x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as :func:`gated_residual_norm`, with the norm quantised to fp8 by row.

    Args:
        x: ``[..., N]``, the stream.
        y: the same shape, the branch.
        gain: ``[N]`` or ``[B, 1, N]``.
        scale: likewise.
        eps: added to both mean squares.

    Returns:
        The new stream; ``[..., N]`` E4M3; ``[..., 1]`` fp32 row scales.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(x, y, gain, scale)
    if needs_gradient(x, y, gain, scale):
        return gated_residual_norm_fp8_reference(x, y, gain, scale, eps)
    result: tuple[Tensor, Tensor, Tensor] = _gated_residual_norm_fp8(x, y, gain, scale, eps)
    return result
