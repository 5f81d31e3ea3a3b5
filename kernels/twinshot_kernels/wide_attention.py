"""Attention of one wide head (the middle block of an image decoder): ``softmax(q k^T / sqrt(D)) v``.

Flash kernels stop at D = 256; here D is 384 or 512. At 1024x1024 N is 16384: ``4 N^2 D`` operations
(0.55 TFLOP at D = 512) are 0.7 ms of an H100's matrix units, beside which a pass over 0.5 GB of scores is
small. A flash kernel of ours took 2.28 ms there: a row of 512 fp32 results does not fit the registers beside
its scores, so it multiplied half as much again, and far from the units' peak. Two cuBLAS products with
torch's softmax between them took 1.3 ms in bf16. This is that in fp16: scores of 11 bits are off by less than
the rounding of bf16 queries and keys moves them, scores of 8 bits by more. Sums are fp32.

Beside the products, scores must be read once and weights written once. As many queries are taken at a time
as keep the scores within ``SCORE_BYTES``.

Measured on an H100: 1,238 us for 16384 tokens at D = 512, 444 TFLOP/s, .56 of a large product; torch's
attention 1,612 us.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

WIDE_HEAD_DIMS = range(320, 513, 64)
SCORE_BYTES = 512 * 2**20
# Keys that a program holds at a time; a row of 1024x1024 pixels' latents is one such piece.
MAX_BLOCK = 16384
ELEMENTS_PER_WARP = 2048
# Rows of scores start where 16 bytes do, as the copy engine of the matrix units asks.
ROW_MULTIPLE = 8
ROUNDED_ROWS = 8
LARGEST = torch.finfo(torch.float16).max


def wide_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend by the formula, in fp32, keeping the whole score matrix; see :func:`wide_attention`."""
    q, k, v = (x.float().squeeze(2) for x in (query, key, value))
    scores = q @ k.transpose(-2, -1) * query.shape[-1] ** -0.5
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed.unsqueeze(2).to(query.dtype).contiguous()


@jit
def _round_kernel(
    x: tl.tensor,
    divisors: tl.tensor | None,
    out: tl.tensor,
    rows: int,
    width: int,
    image_stride: int,
    row_stride: int,
    column_stride: int,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Divide rows if asked to, and round them; what is too large for fp16 becomes its largest number."""
    image = tl.program_id(1).to(tl.int64)
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row, column = line[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    source = image * image_stride + row.to(tl.int64) * row_stride + column * column_stride
    value = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    if divisors is not None:
        value = value / tl.load(divisors + line, mask=line < rows, other=1.0)[:, None]
    value = tl.clamp(value, -LARGEST, LARGEST).to(out.dtype.element_ty)
    tl.store(out + (image * rows + row) * width + column, value, mask=inside)


@jit
def _weigh_kernel(
    scores: tl.tensor,
    sums: tl.tensor,
    stride: int,
    LARGEST: tl.constexpr,
    LOG2_E: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Turn a row of scores into weights in place, ``2^15 exp(score - max)``, and store their sum."""
    # The product before wrote the last rows last, so they are cached; the one after starts at the first.
    row = tl.num_programs(0) - 1 - tl.program_id(0)
    start = scores + row.to(tl.int64) * stride
    column = tl.arange(0, BLOCK)
    peaks = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in tl.static_range(0, COUNT, BLOCK):
        place = first + column
        score = tl.load(start + place, mask=place < COUNT, other=float("-inf")).to(tl.float32)
        peaks = tl.maximum(peaks, score)
    # Scores that overflowed are as large as can be written, and no difference of infinities is taken.
    peak = tl.clamp(tl.max(peaks, axis=0), -LARGEST, LARGEST)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in tl.static_range(0, COUNT, BLOCK):
        place = first + column
        score = tl.load(start + place, mask=place < COUNT, other=float("-inf")).to(tl.float32)
        lower = tl.clamp(score, -LARGEST, LARGEST) - peak
        # Weights between 0 and 2^15 use all of fp16's range; between 0 and 1, small ones would lose bits.
        weight = tl.exp2(lower * LOG2_E + 15.0).to(tl.float16)
        tl.store(start + place, weight, mask=place < COUNT)
        total += tl.where(place < COUNT, weight.to(tl.float32), 0.0)
    tl.store(sums + row, tl.sum(total, axis=0))


def _round(x: Tensor, out: Tensor, divisors: Tensor | None = None) -> Tensor:
    """Write ``x`` ``[B, N, D]``, its rows divided by ``divisors`` ``[N, 1]``, to the contiguous ``out``."""
    batch, rows, width = x.shape
    _round_kernel[(triton.cdiv(rows, ROUNDED_ROWS), batch)](
        x,
        divisors,
        out,
        rows,
        width,
        *x.stride(),
        LARGEST=LARGEST,
        ROWS=ROUNDED_ROWS,
        BLOCK=triton.next_power_of_2(width),
    )
    return out


def _halve(x: Tensor) -> Tensor:
    """Round ``[B, N, 1, D]`` to ``[B, N, D]`` in fp16, contiguous."""
    x = x.squeeze(2)
    return _round(x, torch.empty(x.shape, dtype=torch.float16, device=x.device))


def _weigh(scores: Tensor) -> Tensor:
    """Turn scores ``[N, M]`` into weights in place; returns their sums ``[N, 1]`` in fp32."""
    rows, count = scores.shape
    sums = torch.empty((rows, 1), dtype=torch.float32, device=scores.device)
    block = min(MAX_BLOCK, triton.next_power_of_2(count))
    _weigh_kernel[(rows,)](
        scores,
        sums,
        scores.stride(0),
        LARGEST=LARGEST,
        LOG2_E=math.log2(math.e),
        COUNT=count,
        BLOCK=block,
        num_warps=max(1, block // ELEMENTS_PER_WARP),
    )
    return sums


def _mix(weights: Tensor, value: Tensor) -> Tensor:
    if weights.is_cuda:
        return torch.mm(weights, value, out_dtype=torch.float32)
    return weights.float() @ value.float()


def _launch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.dtype != torch.bfloat16:
        # Rounding scores to fp16 moves them less than bf16's rounding of queries and keys does; not fp16's.
        return wide_attention_reference(query, key, value)
    q, k = _halve(query), _halve(key)
    v = k if value is key else _halve(value)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    (batch, rows, width), count = q.shape, k.shape[1]
    stride = -(-count // ROW_MULTIPLE) * ROW_MULTIPLE
    step = max(1, min(rows, SCORE_BYTES // (2 * stride)))
    buffer = torch.empty((step, stride), dtype=torch.float16, device=query.device)
    for image, first in product(range(batch), range(0, rows, step)):
        part, target = q[image, first : first + step], out[image, first : first + step, 0]
        scores = buffer[: len(part), :count]
        torch.addmm(scores, part, k[image].T, beta=0, alpha=width**-0.5, out=scores)
        sums = _weigh(scores)
        _round(_mix(scores, v[image])[None], target, sums)
    return out


_wide_attention = register("wide_attention", wide_attention_reference, _launch)


def wide_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let every query attend to every key of its image, with one head wider than flash kernels take.

    Args:
        query: ``[B, N, 1, D]``, D 320, 384, 448 or 512, of any strides. On CUDA, bf16 elements count as
            fp16: beyond 65504 they are cut off, below 6e-5 they lose bits; other types run the reference.
        key: ``[B, M, 1, D]``.
        value: ``[B, M, 1, D]``.

    Returns:
        ``[B, N, 1, D]`` in the type of ``query``; sums and softmax are fp32.

    Raises:
        ValueError: if the head count or D is another.
    """
    heads, width = query.shape[2:]
    if heads != 1 or width not in WIDE_HEAD_DIMS:
        raise ValueError(f"{heads} heads of {width}; accepted: one head of 320, 384, 448 or 512.")
    if needs_gradient(query, key, value):
        return wide_attention_reference(query, key, value)
    result: Tensor = _wide_attention(query, key, value)
    return result
