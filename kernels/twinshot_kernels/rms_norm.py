"""Root-mean-square normalisation: ``y = x / sqrt(mean(x^2) + eps) * weight``.

Z-Image normalises four times in every block and once more on each query and key head, so this is
its most frequent pointwise operation. It must read ``x`` once and write ``y`` once.
"""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of ``x`` in plain torch; see :func:`rms_norm`."""
    # Squares of bf16 lose most of their bits, so both statistic and scaling are fp32.
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis of ``x`` by its root mean square and scale it by ``weight``.

    Args:
        x: ``[..., N]``, any floating type and any strides.
        weight: ``[N]``.
        eps: added to the mean square.

    Returns:
        A tensor of the shape and type of ``x``; arithmetic is fp32.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """
    return rms_norm_reference(x, weight, eps)
