"""Rotary position embedding on interleaved pairs.

``(a, b) = (x[2i], x[2i+1])`` becomes ``(a cos - b sin, a sin + b cos)``: the product of the complex
numbers ``a + ib`` and ``cos + i sin``, written with real numbers because compilers and low-precision
types do not know complex ones. It must read ``x`` once and write it once; the tables are tiny.
"""

import torch
from torch import Tensor


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of ``x`` in plain torch; see :func:`rotary`."""
    even, odd = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of every head by its token's angles.

    Args:
        x: ``[B, N, H, D]`` queries or keys, D even.
        cos: ``[N, D/2]`` fp32.
        sin: ``[N, D/2]`` fp32.

    Returns:
        A tensor of the shape and type of ``x``; arithmetic is fp32.

    Source: Su et al., arXiv 2104.09864.
    """
    return rotary_reference(x, cos, sin)
