"""The middle of SANA's feed-forward layer: ``s = silu(x)``, 3x3 depthwise, ``y = u * silu(g)``.

``u`` and ``g`` are the halves of the depthwise convolution's output. These are the widest tensors of a block
(5 times the stream), and plain torch passes over them five times. The kernel must read ``x`` once and write
half of it. A program walks down some rows of a strip of columns, so that each value is loaded, and its SiLU
taken, for the three columns that need it and not for all nine taps.

Measured on an H100: 205 us at 128x128 pixels of 4096 channels in bf16, .98 TB/s, and 41 us at 32x32 of
11200: bound by its arithmetic, three SiLUs a value, not by bytes.

Source: Xie et al., arXiv 2410.10629 (Mix-FFN).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

COLUMNS = 8
CHANNELS = 32
ROWS = 16
NUM_WARPS = 2
STAGES = 3


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
def _weights(
    taps: tl.tensor, row: tl.constexpr, channel: tl.tensor, stride: int, kept: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Load one row of taps."""
    first = taps + 3 * row * stride + channel
    left = tl.load(first, mask=kept, other=0.0).to(tl.float32)
    middle = tl.load(first + stride, mask=kept, other=0.0).to(tl.float32)
    right = tl.load(first + 2 * stride, mask=kept, other=0.0).to(tl.float32)
    return left, middle, right


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
    STAGES: tl.constexpr,
) -> None:
    stride = 2 * channels
    strips = tl.cdiv(width, COLUMNS)
    first_row = (tl.program_id(1) // strips) * ROWS
    column = (tl.program_id(1) % strips) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    # As large as the tile, so that weights are loaded where they are used, and stay there.
    lane = tl.broadcast_to(tl.arange(0, CHANNELS)[None, :], (COLUMNS, CHANNELS))
    channel = tl.program_id(0) * CHANNELS + lane
    image = tl.program_id(2).to(tl.int64) * height * width
    kept = channel < channels
    up_bias = tl.load(bias + channel, mask=kept, other=0.0).to(tl.float32)
    gate_bias = tl.load(bias + channels + channel, mask=kept, other=0.0).to(tl.float32)
    other = channel + channels
    up0, up1, up2 = _weights(taps, 0, channel, stride, kept)
    up3, up4, up5 = _weights(taps, 1, channel, stride, kept)
    up6, up7, up8 = _weights(taps, 2, channel, stride, kept)
    gate0, gate1, gate2 = _weights(taps, 0, other, stride, kept)
    gate3, gate4, gate5 = _weights(taps, 1, other, stride, kept)
    gate6, gate7, gate8 = _weights(taps, 2, other, stride, kept)
    zero = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    # What is known so far of the row above the one being read, and of that row itself.
    up_above, up_here, gate_above, gate_here = zero, zero, zero, zero
    for step in tl.range(0, ROWS + 2, num_stages=STAGES):
        row = first_row + step - 1
        inside = kept & (column * 0 + row >= 0) & (column * 0 + row < height)
        line = x + (image + row * width) * stride
        a = _load(line, column - 1, channel, width, stride, inside)
        b = _load(line, column, channel, width, stride, inside)
        c = _load(line, column + 1, channel, width, stride, inside)
        up_done = up_above + a * up6 + b * up7 + c * up8
        up_above = up_here + a * up3 + b * up4 + c * up5
        up_here = a * up0 + b * up1 + c * up2
        a = _load(line, column - 1, other, width, stride, inside)
        b = _load(line, column, other, width, stride, inside)
        c = _load(line, column + 1, other, width, stride, inside)
        gate_done = gate_above + a * gate6 + b * gate7 + c * gate8
        gate_above = gate_here + a * gate3 + b * gate4 + c * gate5
        gate_here = a * gate0 + b * gate1 + c * gate2
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
        STAGES=STAGES,
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
