"""Norm and rotation of queries and keys, in place in the packed projection.

For each head of q and k: ``h = x / sqrt(mean(x^2) + eps) * scale``, then every pair of ``h`` is turned by
its token's angle. Plain torch moves 54 tensors the size of ``q`` for this in Z-Image; it must move four: q
and k are read and written where they lie, in the layout ``[B, N, H, D]`` that attention reads, and v is not
touched. Nothing is rounded between norm and rotation.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels.rms_norm import normalise
from twinshot_kernels.rotary import rotary_reference


def _split(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.unflatten(qkv, -1, (heads + 2 * kv_heads, -1))
    q, k, v = torch.split(packed, [heads, kv_heads, kv_heads], dim=-2)
    return q, k, v


def _turned(
    x: Tensor, scale: Tensor | None, cos: Tensor, sin: Tensor, eps: float, *, interleaved: bool
) -> Tensor:
    normed = x.float() if scale is None else normalise(x, scale, eps)
    return rotary_reference(normed, cos, sin, interleaved=interleaved).to(x.dtype)


def qk_norm_rotary_reference(
    qkv: Tensor,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    heads: int,
    kv_heads: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise and rotate out of place in plain torch; see :func:`qk_norm_rotary`."""
    q, k, v = _split(qkv, heads, kv_heads)
    q = _turned(q, q_scale, cos, sin, eps, interleaved=interleaved)
    k = _turned(k, k_scale, cos, sin, eps, interleaved=interleaved)
    return q, k, v


def _in_place_reference(
    qkv: Tensor,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    heads: int,
    kv_heads: int,
    interleaved: bool,
) -> None:
    turned = qk_norm_rotary_reference(
        qkv, q_scale, k_scale, cos, sin, eps, heads=heads, kv_heads=kv_heads, interleaved=interleaved
    )
    for place, value in zip(_split(qkv, heads, kv_heads)[:2], turned[:2], strict=True):
        place.copy_(value)


_qk_norm_rotary = register("qk_norm_rotary", _in_place_reference, _in_place_reference, mutates=["qkv"])


def _check(
    qkv: Tensor, q_scale: Tensor | None, k_scale: Tensor | None, cos: Tensor, heads: int, kv_heads: int
) -> None:
    count = heads + 2 * kv_heads
    tokens, half = qkv.shape[1], qkv.shape[-1] // count // 2
    if qkv.shape[-1] != 2 * half * count:
        raise ValueError(f"A projection of width {qkv.shape[-1]} is not {count} heads of even width.")
    if cos.shape != (tokens, half):
        raise ValueError(f"The table has shape {tuple(cos.shape)}; accepted here: {(tokens, half)}.")
    if (q_scale is None) != (k_scale is None):
        raise ValueError("Only one of q_scale and k_scale is given; accepted: both, or neither.")


def qk_norm_rotary(
    qkv: Tensor,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    heads: int,
    kv_heads: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise and rotate the queries and keys of a packed projection.

    ``qkv`` is consumed: unless gradients are needed, its queries and keys are overwritten, and the results
    are views of it.

    Args:
        qkv: ``[B, N, (heads + 2 * kv_heads) * D]`` contiguous, D even.
        q_scale: ``[D]``, or None together with ``k_scale`` for no norm.
        k_scale: ``[D]`` or None.
        cos: ``[N, D/2]`` fp32.
        sin: ``[N, D/2]`` fp32.
        eps: added to the mean square.
        heads: query heads.
        kv_heads: key and value heads.
        interleaved: pairs are neighbours; otherwise the halves of a head are paired.

    Returns:
        q ``[B, N, heads, D]``, k and v ``[B, N, kv_heads, D]``; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit, or just one of the two scales is given.
    """
    _check(qkv, q_scale, k_scale, cos, heads, kv_heads)
    if needs_gradient(qkv, q_scale, k_scale):
        return qk_norm_rotary_reference(
            qkv, q_scale, k_scale, cos, sin, eps, heads=heads, kv_heads=kv_heads, interleaved=interleaved
        )
    qkv = qkv.contiguous()
    _qk_norm_rotary(qkv, q_scale, k_scale, cos, sin, eps, heads, kv_heads, interleaved)
    return _split(qkv, heads, kv_heads)
