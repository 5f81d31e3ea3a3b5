"""TwinFlow's losses as pure functions on tensors (arXiv 2512.05150, section 3 and the released trainer).

Conventions: x_t = t z + (1 - t) x with noise z at t = 1 and data x at t = 0; the network F(x_t, t, r)
predicts the velocity v = z - x on the way from t to the target time r. Negative times mark the fake
trajectory, the one that ends at the student's own samples; mixing uses |t|, only the network sees the
sign. Data is [B, ...] of any shape, all times are [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""F(x_t, t, r) with the condition bound."""

Distance = Literal["barron", "l2"]
"""How a row's error counts: as about its root mean square, or as its mean square."""

RCGM_STEP = 0.01
NEAREST_SHARE = 0.05
BARRON_SCALE = 1e-3


def over(t: Tensor, x: Tensor) -> Tensor:
    """Times [B] shaped to multiply data x [B, ...]."""
    return t.view(-1, *[1] * (x.ndim - 1))


def mix(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The point x_t = |t| z + (1 - |t|) x of the path from data to noise."""
    share = over(t.abs(), x)
    return share * z + (1 - share) * x


def data_estimate(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Where the path ends if the velocity is right: x = x_t - |t| F."""
    return x_t - over(t.abs(), x_t) * velocity


def near_target(t: Tensor, uniform: Tensor, consistency: float = 1.0) -> Tensor:
    """A target time just below t: t - u t min(0.05, consistency) for u [B] in 0..1."""
    return t - uniform * t * min(NEAREST_SHARE, consistency)


def far_target(t: Tensor, uniform: Tensor, consistency: float = 1.0) -> Tensor:
    """A target time anywhere below t: t - u t consistency for u [B] in 0..1."""
    return t - uniform * t * consistency


def flow_matching(prediction: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Mean squared error to the velocity z - x (Lipman et al., arXiv 2210.02747): a scalar."""
    return (prediction - (z - x)).square().mean()


def guided(conditional: Tensor, unconditional: Tensor, target: Tensor, strength: float) -> Tensor:
    """A target moved along the teacher's guidance direction: target + strength (v_c - v_u)."""
    return target + strength * (conditional - unconditional)


def enhanced_rows(t: Tensor, span: tuple[float, float]) -> Tensor:
    """Which rows [B] have their target guided: those strictly inside the span, so never t = 1 in (0, 1)."""
    return (t > span[0]) & (t < span[1])


@torch.no_grad()
def rcgm_target(
    teacher: Velocity, x_t: Tensor, t: Tensor, r: Tensor, target: Tensor, *, order: int = 2
) -> Tensor:
    """The velocity that carries x_t from t to r: `target` for the first 0.01, then N teacher steps.

    Displacements add up: (t - r) F* = Δ target + Σ F_i (t_i - t_{i+1}), solved for F*. Where t and r are
    closer than 0.01 there is no room for teacher steps and F* is `target`.
    """
    step = torch.minimum(torch.full_like(t, RCGM_STEP), t - r)
    here = t - step
    point, moved = x_t - over(step, x_t) * target, over(step, x_t) * target
    sub_step = (here - r) / order
    for _ in range(order):
        moves = over(sub_step, x_t) * teacher(point, here, here - sub_step)
        point, moved, here = point - moves, moved + moves, here - sub_step
    gap = over((t - r).clamp_min(1e-6), x_t)
    return torch.where(over(t - r, x_t) < RCGM_STEP, target, moved / gap)


def clamped_target(prediction: Tensor, goal: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """The released trainer's bounded step: prediction - clamp(D, -1, 1), with D = 100 (t - r)(F - F*).

    Where t and r are closer than 0.01, D is the plain residual F - F*. Gradients stop here.
    """
    gap = t - r
    gain = torch.where(gap >= RCGM_STEP, gap / RCGM_STEP, torch.ones_like(gap))
    return (prediction - (over(gain, prediction) * (prediction - goal)).clamp(-1, 1)).detach()


def gap_weight(t: Tensor, r: Tensor) -> Tensor:
    """Row weight tan((1 - (|t| - |r|)) π / 2.5) + 1: 4.08 for neighbouring times, 1 for one leap."""
    return torch.tan((1 - (t.abs() - r.abs())) * math.pi / 2.5) + 1


def row_errors(prediction: Tensor, target: Tensor, distance: Distance = "l2") -> Tensor:
    """How far each row [B] is from its target.

    "l2" is the mean square e; "barron" (Barron, arXiv 1701.03077, shape 1, scale c = 1e-3) is
    e / (c sqrt(e / c² + 1)) with the root held constant: its value is about the root mean square.
    """
    squared = (prediction - target).square().flatten(1).mean(1)
    if distance == "l2":
        return squared
    scale = BARRON_SCALE
    return squared * (squared.detach() / (scale**2 + 1e-8) + 1).rsqrt() / scale


@torch.no_grad()
def rectification_gradient(velocity: Velocity, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """How far the fake trajectory's velocity is from the real one's at samples x, clamped to ±1.

    F(x', -t, -t) - F(x', t, t) at x' = mix(x, z, t): moving the one-step velocity against it moves the
    samples towards the data, the KL gradient of equation 9 with the factor (1 - t)/t dropped.
    """
    point = mix(x, z, t)
    return (velocity(point, -t, -t) - velocity(point, t, t)).clamp(-1, 1)
