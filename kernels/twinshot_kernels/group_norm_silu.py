"""Group norm and SiLU, channels last: ``y = silu((x + channel_bias - mean) * rstd * weight + bias)``.

torch's own group norm takes 20 to 44 times a copy's time on an H100 at a decoder's sizes, and more still in
channels last. Two passes are needed, because the first pixel's result depends on the last one's value: the
statistics (:func:`twinshot_kernels.group_statistics`) read ``x``, this kernel reads it again and writes
``y``. Given statistics, the first pass is skipped. ``channel_bias`` is the bias of the convolution before,
which costs a pass of its own where torch adds it.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels.group_statistics import check_groups, group_statistics_reference


def group_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    channel_bias: Tensor | None = None,
    statistics: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """Normalise and activate in plain torch; see :func:`group_norm_silu`."""
    if statistics is None:
        statistics = group_statistics_reference(x, groups, eps, channel_bias)
    repeated = statistics.repeat_interleave(x.shape[1] // groups, dim=1)[..., None, None, :]
    mean, rstd = repeated.unbind(-1)
    wide = x.float() if channel_bias is None else x.float() + channel_bias.float()[:, None, None]
    normed = (wide - mean) * rstd * weight.float()[:, None, None] + bias.float()[:, None, None]
    out = functional.silu(normed) if silu else normed
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)


_group_norm_silu = register("group_norm_silu", group_norm_silu_reference, group_norm_silu_reference)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    channel_bias: Tensor | None = None,
    statistics: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """Normalise groups of channels and apply SiLU.

    Args:
        x: ``[B, C, H, W]``, channels last (other layouts are converted), any floating type.
        weight: ``[C]``.
        bias: ``[C]``.
        groups: count of groups; it divides C.
        eps: added to the variance.
        channel_bias: ``[C]``, added to ``x`` first.
        statistics: ``[B, groups, 2]`` fp32 of ``x + channel_bias``, if they are known already.
        silu: whether the activation is applied.

    Returns:
        A tensor of the shape and type of ``x``, channels last; arithmetic is fp32.

    Raises:
        ValueError: if ``groups`` does not divide C or ``statistics`` has another shape.

    Source: Wu and He, arXiv 1803.08494.
    """
    check_groups(x, groups)
    if statistics is not None and statistics.shape != (x.shape[0], groups, 2):
        raise ValueError(
            f"statistics have shape {tuple(statistics.shape)}; accepted: {(x.shape[0], groups, 2)}."
        )
    if needs_gradient(x, weight, bias, channel_bias, statistics):
        return group_norm_silu_reference(x, weight, bias, groups, eps, channel_bias, statistics, silu)
    result: Tensor = _group_norm_silu(x, weight, bias, groups, eps, channel_bias, statistics, silu)
    return result
