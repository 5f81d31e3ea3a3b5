"""Rotary position embedding, in plain torch: the form that training uses on unpacked queries and keys.

``(a, b)`` becomes ``(a cos - b sin, a sin + b cos)``: the product of the complex numbers ``a + ib`` and
``cos + i sin``, written with real numbers because compilers and low-precision types do not know complex
ones. A pair is ``(x[2i], x[2i+1])`` (interleaved, as in Z-Image) or ``(x[i], x[i + D/2])`` (halves, as in
Qwen). Inference rotates in :func:`twinshot_kernels.qk_norm_rotary` instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True) -> Tensor:
    """Rotate the pairs of ``x`` in plain torch; see :func:`rotary`."""
    pair_axis = -1 if interleaved else -2
    pairs = torch.unflatten(x.float(), -1, (-1, 2) if interleaved else (2, -1))
    first, second = pairs.unbind(pair_axis)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=pair_axis)
    return turned.flatten(-2).to(x.dtype)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True) -> Tensor:
    """Rotate the pairs of every head by its token's angles.

    Args:
        x: ``[B, N, H, D]`` queries or keys, D even.
        cos: ``[N, D/2]`` fp32.
        sin: ``[N, D/2]`` fp32.
        interleaved: pairs are neighbours; otherwise the halves of a head are paired.

    Returns:
        A tensor of the shape and type of ``x``; arithmetic is fp32.

    Source: Su et al., arXiv 2104.09864.
    """
    return rotary_reference(x, cos, sin, interleaved=interleaved)
