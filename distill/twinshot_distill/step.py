"""The losses of one batch: targets from guide and teacher, errors, and the rectification."""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_distill import losses
from twinshot_distill.losses import Velocity
from twinshot_distill.objective import Condition, Network, Networks, Objective, Rows, draw_rows


def bind(network: Network[Condition], condition: Condition) -> Velocity:
    """A network as a function of x_t and times alone."""
    return lambda x_t, t, r: network(x_t, t, r, condition)


def one_step_samples(student: Network[Condition], condition: Condition, like: Tensor) -> Tensor:
    """What the student makes of fresh noise in one step: shaped like `like` [B, ...]."""
    noise, one = torch.randn_like(like), like.new_ones(len(like))
    return noise - student(noise, one, torch.zeros_like(one), condition)


@torch.no_grad()
def few_steps(student: Network[Condition], noise: Tensor, condition: Condition, steps: int) -> Tensor:
    """Data [B, ...] made of noise in equal steps, each aiming at the data, without fresh noise."""
    x = noise
    for step in range(steps, 0, -1):
        t = noise.new_full((len(noise),), step / steps)
        velocity = student(x, t, torch.zeros_like(t), condition)
        x = x - velocity / steps
    return x


def replace_data(rows: Rows, settings: Objective, student: Network[Condition], condition: Condition) -> Rows:
    """Put the student's samples where the method asks for them: adv rows, or all where there is no data."""
    which = slice(0, len(rows.x)) if settings.data_free else rows.groups["adv"]
    if which.start == which.stop:
        return rows
    with torch.no_grad():
        fake = one_step_samples(student, condition[which], rows.x[which])
    return rows._replace(x=torch.cat([rows.x[: which.start], fake, rows.x[which.stop :]]))


@torch.no_grad()
def real_target(
    rows: Rows,
    x_t: Tensor,
    settings: Objective,
    guide: Network[Condition],
    given: Condition,
    empty: Condition,
) -> Tensor:
    """The velocity [B, ...] that rows follow before consistency: the data's or the guide's, with guidance.

    Rows outside `enhanced_range` and adv rows are not guided. A frozen teacher without data gives guided rows
    their whole target, v_u + ratio (v_c - v_u).
    """
    target = rows.z - rows.x
    if not (settings.enhanced_ratio or settings.distilled):
        return target
    later = slice(0 if settings.guides_leap else rows.groups["e2e"].stop, rows.real.stop)
    asked = rows.real if "e2e" in settings.distilled else later
    conditional = torch.zeros_like(target)
    conditional[asked] = guide(x_t[asked], rows.t[asked], rows.t[asked], given[asked])
    for span in (rows.groups[name] for name in settings.distilled):
        target[span] = conditional[span]
    if settings.enhanced_ratio and later.start < later.stop:
        without = guide(x_t[later], rows.t[later], rows.t[later], empty[later])
        frozen = settings.data_free and settings.teacher_decay == 1
        base = without if frozen else target[later]
        pushed = losses.guided(conditional[later], without, base, settings.enhanced_ratio)
        wanted = losses.over(losses.enhanced_rows(rows.t[later], settings.enhanced_range), pushed)
        target[later] = torch.where(wanted, pushed, target[later])
    return target


def full_target(
    prediction: Tensor,
    rows: Rows,
    x_t: Tensor,
    settings: Objective,
    networks: Networks[Condition],
    given: Condition,
    empty: Condition,
) -> Tensor:
    """The target [B, ...] of every row: RCGM's, bounded, on real rows; the fake path's on adv rows."""
    target = real_target(rows, x_t, settings, networks.guide, given, empty)
    real = rows.real
    if settings.order == 0 or real.stop == 0:
        return target
    t, r = rows.t[real], rows.r[real]
    teacher = bind(networks.teacher, given[real])
    goal = losses.rcgm_target(teacher, x_t[real], t, r, target[real], order=settings.order)
    bounded = losses.clamped_target(prediction[real], goal, t, r)
    return torch.cat([bounded, target[real.stop :]])


def rectification(
    leap: Tensor, z: Tensor, student: Network[Condition], condition: Condition, settings: Objective
) -> Tensor:
    """The rectification term: leaps [B, ...] from noise z, pulled by the difference of both trajectories."""
    sample = (z - leap).detach()
    t = torch.rand(len(leap), device=leap.device)
    pull = losses.rectification_gradient(bind(student, condition), sample, torch.randn_like(sample), t)
    return losses.row_errors(leap, (leap - pull).detach(), settings.distance).mean()


def loss_terms(
    networks: Networks[Condition], settings: Objective, x: Tensor, given: Condition, empty: Condition
) -> dict[str, Tensor]:
    """The loss of a batch as terms to be added up: `base`, `adv` and `rectify`, scalars.

    Args:
        networks: see :class:`~twinshot_distill.objective.Networks`.
        settings: the objective.
        x: data [B, ...] fp32; only its shape counts where the objective is data-free.
        given: its captions.
        empty: as many empty captions.
    """
    rows = replace_data(draw_rows(x, settings), settings, networks.student, given)
    x_t = losses.mix(rows.x, rows.z, rows.t)
    prediction = networks.student(x_t, rows.t, rows.r, given)
    networks.follow()
    target = full_target(prediction, rows, x_t, settings, networks, given, empty)
    adv = slice(rows.real.stop, len(x))
    weight = losses.gap_weight(rows.t, rows.r)
    weight[adv] = 1.0
    errors = weight * losses.row_errors(prediction, target, settings.distance)
    real = rows.real if settings.order else rows.groups["mul"]
    counted = len(errors[real]) + len(errors[adv])
    terms = {"base": errors[real].sum() / counted, "adv": errors[adv].sum() / counted}
    if settings.rectifies:
        span = rows.groups["e2e"]
        term = rectification(prediction[span], rows.z[span], networks.student, given[span], settings)
        terms["rectify"] = settings.rectify * term
    return terms
