"""Add a gated branch to the residual stream: ``y = x + gain * branch``.

For a stream that the next layer reads without a norm, as cross attention does in SANA. It must read two
tensors and write one. Measured on an H100: 5.1 us at 1024x2240 in bf16.
"""

from __future__ import annotations

from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._rows import (
    as_rows,
    as_vector,
    check_same_shape,
    check_vector,
    empty_rows,
    load_row,
    row_tile,
    rows_per_image,
    store_row,
)
from twinshot_kernels._triton import jit, tl, triton

MAX_COLUMNS = 2048


def gated_residual_reference(x: Tensor, branch: Tensor, gain: Tensor) -> Tensor:
    """Gate and add in plain torch; see :func:`gated_residual`."""
    return (x.float() + branch.float() * gain.float()).to(x.dtype).contiguous()


@jit
def _gated_residual_kernel(
    x: tl.tensor,
    branch: tl.tensor,
    gain: tl.tensor,
    out: tl.tensor,
    x_stride: int,
    branch_stride: int,
    gain_step: int,
    image_rows: int,
    width: int,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    factor = load_row(gain, row // image_rows * gain_step, columns, width)
    added = load_row(branch, row * branch_stride, columns, width) * factor
    store_row(load_row(x, row * x_stride, columns, width) + added, out, None, row, columns, width)


def _launch(x: Tensor, branch: Tensor, gain: Tensor) -> Tensor:
    stream, added, out = as_rows(x), as_rows(branch), empty_rows(x)
    vector, step = as_vector(gain)
    count, width = stream.shape
    tile = row_tile(min(width, MAX_COLUMNS))
    _gated_residual_kernel[(count, triton.cdiv(width, tile["BLOCK"]))](
        stream,
        added,
        vector,
        out,
        stream.stride(0),
        added.stride(0),
        step,
        rows_per_image(x),
        width,
        **tile,
    )
    return out


_gated_residual = register("gated_residual", gated_residual_reference, _launch)


def gated_residual(x: Tensor, branch: Tensor, gain: Tensor) -> Tensor:
    """Add ``gain * branch`` to the stream.

    Args:
        x: ``[..., N]``, the stream, any floating type; rows may be strided.
        branch: the same shape.
        gain: ``[N]``, or ``[B, 1, N]`` beside ``x`` ``[B, rows, N]``; any floating type.

    Returns:
        A tensor of the shape and type of ``x``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_same_shape("branch", branch, x)
    check_vector("gain", gain, x)
    if needs_gradient(x, branch, gain):
        return gated_residual_reference(x, branch, gain)
    result: Tensor = _gated_residual(x, branch, gain)
    return result
