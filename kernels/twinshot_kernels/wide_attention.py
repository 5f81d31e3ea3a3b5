"""Attention of one wide head (the middle block of an image decoder): ``softmax(q k^T / sqrt(D)) v``.

Flash kernels stop at D = 256; here D is 384 or 512 and N is 16384 at 1024x1024, so that a score matrix
would take 537 MB in bf16. This one keeps scores on the chip, with the running maximum and sum of Dao et
al. (arXiv 2205.14135). A row of 512 fp32 results does not fit the registers beside its scores, so a program
makes ``VALUES`` columns of the result and programs side by side repeat the scores; widths between powers of
two are filled up with zeros by the copy engine. The function needs ``4 N^2 D`` operations (0.55 TFLOP at
D = 512); two parts do half as many again.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import TensorDescriptor, jit, tl, triton

WIDE_HEAD_DIMS = range(320, 513, 64)


class Tile(NamedTuple):
    """What a program holds: rows of queries, rows of keys at a time, columns of the result."""

    queries: int
    keys: int
    values: int
    num_warps: int
    num_stages: int


# The first is used; the others are what else fits an H100's shared memory.
TILES = (
    Tile(queries=128, keys=32, values=256, num_warps=8, num_stages=2),
    Tile(queries=128, keys=64, values=256, num_warps=8, num_stages=1),
    Tile(queries=64, keys=32, values=256, num_warps=4, num_stages=3),
    Tile(queries=64, keys=32, values=512, num_warps=8, num_stages=2),
    Tile(queries=64, keys=64, values=512, num_warps=8, num_stages=1),
)


def wide_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend by the formula, in fp32, keeping the whole score matrix; see :func:`wide_attention`."""
    q, k, v = (x.float().squeeze(2) for x in (query, key, value))
    scores = q @ k.transpose(-2, -1) * query.shape[-1] ** -0.5
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed.unsqueeze(2).to(query.dtype).contiguous()


@jit
def _wide_attention_kernel(
    query: tl.tensor_descriptor,
    key: tl.tensor_descriptor,
    value: tl.tensor_descriptor,
    out: tl.tensor,
    rows: int,
    width: int,
    scale: float,
    COUNT: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
) -> None:
    first, part, image = tl.program_id(0) * QUERIES, tl.program_id(1) * VALUES, tl.program_id(2)
    q = tl.reshape(query.load([image, first, 0]), (QUERIES, WIDTH))
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, VALUES), tl.float32)
    for start in tl.range(0, COUNT, KEYS):
        k = tl.reshape(key.load([image, start, 0]), (KEYS, WIDTH))
        scores = tl.dot(q, tl.trans(k)) * scale
        known = start + tl.arange(0, KEYS) < COUNT
        scores = tl.where(known[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.reshape(value.load([image, start, part]), (KEYS, VALUES))
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None])
        peak = higher
    row = first + tl.arange(0, QUERIES)[:, None]
    column = part + tl.arange(0, VALUES)[None, :]
    place = (image.to(tl.int64) * rows + row) * width + column
    mixed = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place, mixed, mask=(row < rows) & (column < width))


def _describe(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Describe ``[B, N, 1, D]`` to the copy engine, which wants steps of whole 16 bytes."""
    x = x.squeeze(2)
    if x.stride(-1) != 1 or any(step * x.itemsize % 16 for step in (*x.stride()[:2], x.storage_offset())):
        x = x.contiguous()
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows, columns])


def _launch(query: Tensor, key: Tensor, value: Tensor, tile: Tile = TILES[0]) -> Tensor:
    if query.dtype == torch.float32:
        # The matrix units would round fp32 operands to tf32; whoever asks for fp32 wants none of that.
        return wide_attention_reference(query, key, value)
    batch, rows, _, width = query.shape
    padded = triton.next_power_of_2(width)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    _wide_attention_kernel[(triton.cdiv(rows, tile.queries), triton.cdiv(width, tile.values), batch)](
        _describe(query, tile.queries, padded),
        _describe(key, tile.keys, padded),
        _describe(value, tile.keys, tile.values),
        out,
        rows,
        width,
        width**-0.5 * math.log2(math.e),
        COUNT=key.shape[1],
        QUERIES=tile.queries,
        KEYS=tile.keys,
        WIDTH=padded,
        VALUES=tile.values,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


_wide_attention = register("wide_attention", wide_attention_reference, _launch)


def wide_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let every query attend to every key of its image, with one head wider than flash kernels take.

    Args:
        query: ``[B, N, 1, D]``, D 320, 384, 448 or 512; rows may be strided. On CUDA: Hopper.
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
