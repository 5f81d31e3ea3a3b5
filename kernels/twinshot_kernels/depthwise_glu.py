"""The middle of SANA's feed-forward layer: ``s = silu(x)``, 3x3 depthwise, ``y = u * silu(g)``.

``u`` and ``g`` are the halves of the depthwise convolution's output. These are the widest tensors of a block
(5 times the stream), and plain torch passes over them five times. The kernel must read ``x`` once and write
half of it. A program walks down some rows of a strip of columns, so that each value is loaded, and its SiLU
taken, for the three columns that need it and not for all nine taps. Not yet measured on a GPU.

Source: Xie et al., arXiv 2410.10629 (Mix-FFN).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

COLUMNS = 8
CHANNELS = 64
ROWS = 8
NUM_WARPS = 4


def depthwise_glu_reference(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """Activate, convolve and gate in plain torch, in fp32; see :func:`depthwise_glu`."""
    wide = functional.silu(x.float()).permute(0, 3, 1, 2)
    kernel = taps.float().t().reshape(-1, 1, 3, 3)
    up, gate = functional.conv2d(wide, kernel, bias.float(), padding=1, groups=len(kernel)).chunk(2, dim=1)
    return (up * functional.silu(gate)).permute(0, 2, 3, 1).to(x.dtype).contiguous()


@jit
def _silu(x: tl.tensor) -> tl.tensor:
    return x / (1.0 + tl.exp(-x))


@jit
def _load(
    line: tl.tensor, column: tl.tensor, channel: tl.tensor, width: int, stride: int, inside: tl.tensor
) -> tl.tensor:
    """Load and activate some columns of one row."""
    kept = inside & (column >= 0) & (column < width)
    return _silu(tl.load(line + column * stride + channel, mask=kept, other=0.0).to(tl.float32))


@jit
def _tap(taps: tl.tensor, index: tl.constexpr, channel: tl.tensor, stride: int, kept: tl.tensor) -> tl.tensor:
    return tl.load(taps + index * stride + channel, mask=kept, other=0.0).to(tl.float32)


@jit
def _along(
    taps: tl.tensor,
    row: tl.constexpr,
    left: tl.tensor,
    middle: tl.tensor,
    right: tl.tensor,
    channel: tl.tensor,
    stride: int,
    kept: tl.tensor,
) -> tl.tensor:
    """Multiply one row of pixels with one row of taps."""
    return (
        left * _tap(taps, 3 * row, channel, stride, kept)
        + middle * _tap(taps, 3 * row + 1, channel, stride, kept)
        + right * _tap(taps, 3 * row + 2, channel, stride, kept)
    )


@jit
def _depthwise_glu_kernel(
    x: tl.tensor,
    taps: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    height: int,
    width: int,
    channels: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    stride = 2 * channels
    strips = tl.cdiv(width, COLUMNS)
    first_row = (tl.program_id(1) // strips) * ROWS
    column = (tl.program_id(1) % strips) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    image = tl.program_id(2).to(tl.int64) * height * width
    kept = channel < channels
    up_bias = tl.load(bias + channel, mask=kept, other=0.0).to(tl.float32)
    gate_bias = tl.load(bias + channels + channel, mask=kept, other=0.0).to(tl.float32)
    zero = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    # What is known so far of the row above the one being read, and of that row itself.
    up_above, up_here, gate_above, gate_here = zero, zero, zero, zero
    for step in range(ROWS + 2):
        row = first_row + step - 1
        inside = kept & (column * 0 + row >= 0) & (column * 0 + row < height)
        line = x + (image + row * width) * stride
        a = _load(line, column - 1, channel, width, stride, inside)
        b = _load(line, column, channel, width, stride, inside)
        c = _load(line, column + 1, channel, width, stride, inside)
        up_done = up_above + _along(taps, 2, a, b, c, channel, stride, kept)
        up_above = up_here + _along(taps, 1, a, b, c, channel, stride, kept)
        up_here = _along(taps, 0, a, b, c, channel, stride, kept)
        other = channel + channels
        a = _load(line, column - 1, other, width, stride, inside)
        b = _load(line, column, other, width, stride, inside)
        c = _load(line, column + 1, other, width, stride, inside)
        gate_done = gate_above + _along(taps, 2, a, b, c, other, stride, kept)
        gate_above = gate_here + _along(taps, 1, a, b, c, other, stride, kept)
        gate_here = _along(taps, 0, a, b, c, other, stride, kept)
        y = (up_done + up_bias) * _silu(gate_done + gate_bias)
        ready = kept & (column < width) & (column * 0 + step >= 2) & (column * 0 + row - 1 < height)
        place = (image + (row - 1) * width + column) * channels + channel
        tl.store(out + place, y.to(out.dtype.element_ty), mask=ready)


def _launch(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    x = x.contiguous()
    batch, height, width, double = x.shape
    channels = double // 2
    out = torch.empty((batch, height, width, channels), dtype=x.dtype, device=x.device)
    strips = triton.cdiv(width, COLUMNS) * triton.cdiv(height, ROWS)
    _depthwise_glu_kernel[(triton.cdiv(channels, CHANNELS), strips, batch)](
        x,
        taps.contiguous(),
        bias.contiguous(),
        out,
        height,
        width,
        channels,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        CHANNELS=CHANNELS,
        num_warps=NUM_WARPS,
    )
    return out


_depthwise_glu = register("depthwise_glu", depthwise_glu_reference, _launch)


def depthwise_glu(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """Activate pixels, mix each channel with its neighbours, and gate one half by the other.

    Args:
        x: ``[B, H, W, 2C]``, any floating type.
        taps: ``[9, 2C]``: row ``3 i + j`` is what row ``i`` and column ``j`` of a neighbourhood weigh.
        bias: ``[2C]``, of the convolution.

    Returns:
        ``[B, H, W, C]`` in the type of ``x``, contiguous; arithmetic is fp32, borders are zeros.

    Raises:
        ValueError: if the shapes do not fit.
    """
    width = x.shape[-1]
    if x.dim() != 4 or width % 2 or taps.shape != (9, width) or bias.shape != (width,):
        raise ValueError(
            f"x, taps and bias have shapes {tuple(x.shape)}, {tuple(taps.shape)} and {tuple(bias.shape)}; "
            "accepted: [B, H, W, 2C], [9, 2C] and [2C]."
        )
    if needs_gradient(x, taps, bias):
        return depthwise_glu_reference(x, taps, bias)
    result: Tensor = _depthwise_glu(x, taps, bias)
    return result
