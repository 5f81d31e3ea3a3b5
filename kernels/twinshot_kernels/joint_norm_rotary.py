"""Norm and rotation of the queries and keys of two streams, in place in their joint packed projection.

A dual-stream block projects image and text with weights of their own, then lets them attend together. Both
projections write into one buffer ``[B, N, 3 H D]``, image rows first; this kernel does there what
:func:`twinshot_kernels.qk_norm_rotary` does in one stream, with the scales of the stream that a row belongs
to. Attention reads the buffer where it lies, so nothing is concatenated. Plain torch moves 62 tensors the
size of ``q``; it must move four: q and k are read and written, v is not touched.

Not measured alone yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton
from twinshot_kernels.qk_norm_rotary import (
    HEADS_PER_PROGRAM,
    NUM_WARPS,
    load_pairs,
    qk_norm_rotary_reference,
    store_pairs,
)

Joint = tuple[Tensor, Tensor, Tensor]


def joint_norm_rotary_reference(
    qkv: Tensor, scales: Tensor, cos: Tensor, sin: Tensor, split: int, eps: float, heads: int
) -> Joint:
    """Normalise and rotate out of place in plain torch; see :func:`joint_norm_rotary`."""
    turned = [
        qk_norm_rotary_reference(
            qkv[:, rows],
            pair[0],
            pair[1],
            cos[rows],
            sin[rows],
            eps,
            heads=heads,
            kv_heads=heads,
            interleaved=True,
        )
        for pair, rows in zip(scales, (slice(split), slice(split, None)), strict=True)
    ]
    query, key, value = (torch.cat(parts, dim=1) for parts in zip(*turned, strict=True))
    return query, key, value


def _in_place_reference(
    qkv: Tensor, scales: Tensor, cos: Tensor, sin: Tensor, split: int, eps: float, heads: int
) -> None:
    query, key, _ = joint_norm_rotary_reference(qkv, scales, cos, sin, split, eps, heads)
    qkv[..., : 2 * qkv.shape[-1] // 3].copy_(torch.cat((query, key), dim=2).flatten(2))


@jit
def _joint_norm_rotary_kernel(
    qkv: tl.tensor,
    scales: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    tokens: int,
    split: int,
    half: int,
    heads: int,
    eps: float,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    token = row % tokens
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    inside = head < 2 * heads
    x = qkv + row * (6 * heads * half) + head * (2 * half)
    first, second = load_pairs(x, half, inside, PAIRS, True)
    inverse = tl.rsqrt(tl.sum(first * first + second * second, axis=1, keep_dims=True) / (2 * half) + eps)
    # Of each stream the queries' scale, then the keys'.
    stream = (token >= split).to(tl.int32)
    scale = scales + (2 * stream + (head >= heads).to(tl.int32)) * (2 * half)
    first_scale, second_scale = load_pairs(scale, half, inside, PAIRS, True)
    first *= inverse * first_scale
    second *= inverse * second_scale
    pair = tl.arange(0, PAIRS)[None, :]
    c = tl.load(cos + token * half + pair, mask=pair < half, other=0.0)
    s = tl.load(sin + token * half + pair, mask=pair < half, other=0.0)
    store_pairs(x, first * c - second * s, first * s + second * c, half, inside, PAIRS, True)


def _launch(
    qkv: Tensor, scales: Tensor, cos: Tensor, sin: Tensor, split: int, eps: float, heads: int
) -> None:
    batch, tokens, _ = qkv.shape
    half = cos.shape[1]
    _joint_norm_rotary_kernel[(batch * tokens, triton.cdiv(2 * heads, HEADS_PER_PROGRAM))](
        qkv,
        scales.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        tokens,
        split,
        half,
        heads,
        eps,
        HEADS=HEADS_PER_PROGRAM,
        PAIRS=triton.next_power_of_2(half),
        num_warps=NUM_WARPS,
    )


_joint_norm_rotary = register("joint_norm_rotary", _in_place_reference, _launch, mutates=["qkv"])


def _check(qkv: Tensor, scales: Tensor, cos: Tensor, split: int, heads: int) -> None:
    tokens, width = qkv.shape[1:]
    if width % (6 * heads):
        raise ValueError(f"A projection of width {width} is not {3 * heads} heads of even width.")
    size = width // (3 * heads)
    if scales.shape != (2, 2, size):
        raise ValueError(f"scales have shape {tuple(scales.shape)}; accepted here: {(2, 2, size)}.")
    if cos.shape != (tokens, size // 2):
        raise ValueError(f"The table has shape {tuple(cos.shape)}; accepted here: {(tokens, size // 2)}.")
    if not 0 <= split <= tokens:
        raise ValueError(f"The streams meet at row {split}; accepted here: 0 to {tokens}.")


def joint_norm_rotary(
    qkv: Tensor, scales: Tensor, cos: Tensor, sin: Tensor, eps: float, *, split: int, heads: int
) -> Joint:
    """Normalise and rotate the queries and keys of two streams in their joint projection.

    ``qkv`` is consumed: unless gradients are needed, its queries and keys are overwritten, and the results
    are views of it.

    Args:
        qkv: ``[B, N, 3 * heads * D]`` contiguous, D even; rows before ``split`` are the first stream's.
        scales: ``[2, 2, D]``: for each stream those of queries and of keys.
        cos: ``[N, D/2]`` fp32, of neighbouring pairs.
        sin: ``[N, D/2]`` fp32.
        eps: added to the mean square.
        split: rows of the first stream.
        heads: of queries, of keys and of values each.

    Returns:
        q, k and v ``[B, N, heads, D]``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(qkv, scales, cos, split, heads)
    # What is exported is written out of place: other runtimes have no views to write to.
    if torch.compiler.is_exporting() or needs_gradient(qkv, scales, cos, sin):
        return joint_norm_rotary_reference(qkv, scales, cos, sin, split, eps, heads)
    qkv = qkv.contiguous()
    _joint_norm_rotary(qkv, scales, cos, sin, split, eps, heads)
    query, key, value = torch.unflatten(qkv, -1, (3, heads, -1)).unbind(2)
    return query, key, value
