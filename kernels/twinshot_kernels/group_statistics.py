"""Mean and inverse deviation of each channel group, alone or in the pass that adds a residual.

``mean = E[x]``, ``rstd = 1 / sqrt(E[(x - mean)^2] + eps)`` over the pixels and channels of a group.
:func:`residual_statistics` also makes ``out = x + y + channel_bias``, so that the norm behind a residual
block does not read its input twice. The first must read ``x`` once; the second must read ``x`` and ``y`` and
write ``out``. A bias is constant over pixels: it moves a channel's mean and not its spread, so folding one
in costs nothing.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register


def group_statistics_reference(
    x: Tensor, groups: int, eps: float, channel_bias: Tensor | None = None
) -> Tensor:
    """Compute statistics in plain torch; see :func:`group_statistics`."""
    wide = x.float() if channel_bias is None else x.float() + channel_bias.float()[:, None, None]
    variance, mean = torch.var_mean(
        torch.unflatten(wide.flatten(2), 1, (groups, -1)), dim=(2, 3), correction=0
    )
    return torch.stack((mean, torch.rsqrt(variance + eps)), dim=-1)


def residual_statistics_reference(
    x: Tensor, y: Tensor, groups: int, eps: float, channel_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add, then compute the sum's statistics, in plain torch; see :func:`residual_statistics`."""
    total = x.float() + y.float()
    if channel_bias is not None:
        total = total + channel_bias.float()[:, None, None]
    out = total.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return out, group_statistics_reference(out, groups, eps)


_group_statistics = register("group_statistics", group_statistics_reference, group_statistics_reference)
_residual_statistics = register(
    "residual_statistics", residual_statistics_reference, residual_statistics_reference
)


def check_groups(x: Tensor, groups: int) -> None:
    """Refuse a group count that does not divide the channels of ``x`` ``[B, C, H, W]``.

    Raises:
        ValueError: naming both.
    """
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels.")


def group_statistics(x: Tensor, groups: int, eps: float, channel_bias: Tensor | None = None) -> Tensor:
    """Compute the statistics that a group norm of ``x + channel_bias`` needs.

    Args:
        x: ``[B, C, H, W]``, channels last (other layouts are converted), any floating type.
        groups: count of groups; it divides C.
        eps: added to the variance.
        channel_bias: ``[C]``, added to ``x`` first.

    Returns:
        ``[B, groups, 2]`` fp32: mean, and inverse standard deviation of the biased variance. Deterministic.

    Raises:
        ValueError: if ``groups`` does not divide C.
    """
    check_groups(x, groups)
    if needs_gradient(x, channel_bias):
        return group_statistics_reference(x, groups, eps, channel_bias)
    result: Tensor = _group_statistics(x, groups, eps, channel_bias)
    return result


def residual_statistics(
    x: Tensor, y: Tensor, groups: int, eps: float, channel_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add a residual branch and compute the group statistics of the sum.

    Args:
        x: ``[B, C, H, W]``, channels last (other layouts are converted), any floating type.
        y: the same shape and type.
        groups: count of groups; it divides C.
        eps: added to the variance.
        channel_bias: ``[C]``, the bias of the convolution that made ``y``, added too.

    Returns:
        ``x + y + channel_bias``, channels last, rounded once to the type of ``x``; and its statistics as
        :func:`group_statistics` gives them, of the rounded values.

    Raises:
        ValueError: if the shapes differ or ``groups`` does not divide C.
    """
    check_groups(x, groups)
    if y.shape != x.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}; accepted: {tuple(x.shape)}.")
    if needs_gradient(x, y, channel_bias):
        return residual_statistics_reference(x, y, groups, eps, channel_bias)
    result: tuple[Tensor, Tensor] = _residual_statistics(x, y, groups, eps, channel_bias)
    return result
