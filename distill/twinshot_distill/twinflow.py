"""Stage 3: TwinFlow. The flow model learns to leap: any time to any target, noise to picture in one step.

One batch has four groups of rows (arXiv 2512.05150; the released trainer's row groups):

    e2e  t = 1, r = 0         the one-step leap
    mul  r just below t       stays a flow model
    any  r anywhere below t   consistent leaps of every length (RCGM, order 2)
    adv  t = r < 0            the fake trajectory: flow matching on the student's own samples

and a rectification term moves the one-step samples by the difference of fake and real velocity. Guidance
comes from the frozen flow model of stage 2, so the student needs none when it serves.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_distill import losses
from twinshot_distill.configuration import TwinFlowSettings
from twinshot_distill.dataset import LatentSource
from twinshot_distill.denoiser import (
    Condition,
    Denoiser,
    bind,
    bucket,
    compile_blocks,
    empty_captions,
    in_chunks,
)
from twinshot_distill.losses import Velocity
from twinshot_distill.optimizer import Average, Clock, Optimizer
from twinshot_distill.report import say
from twinshot_engine.transformer.single_stream import SingleStreamTransformer


class Rows(NamedTuple):
    """A batch in group order e2e, mul, any, adv: pictures, noise, times and targets."""

    x: Tensor
    z: Tensor
    t: Tensor
    r: Tensor


def draw_rows(x: Tensor, fake: Tensor) -> Rows:
    """Times and noise for pictures x [B, ...]; `fake` [B/4, ...] replaces the last group's pictures."""
    group = len(x) // 4
    u = torch.rand(3, group, device=x.device)
    one, zero = torch.ones_like(u[0]), torch.zeros_like(u[0])
    near = u[0] * (1 - 0.05 * torch.rand_like(u[0]))
    far = torch.where(torch.rand_like(u[1]) < 0.5, zero, u[1] * torch.rand_like(u[1]))
    return Rows(
        torch.cat([x[: 3 * group], fake]),
        torch.randn_like(x),
        torch.cat([one, u[0], u[1], -u[2]]),
        torch.cat([zero, near, far, -u[2]]),
    )


@torch.no_grad()
def real_target(
    rows: Rows, x_t: Tensor, frozen: Velocity, unconditional: Velocity, guidance: float
) -> Tensor:
    """The velocity that the e2e, mul and any rows follow, guided by the frozen flow model.

    At t = 1 guidance has nothing to go by and is left out; mul rows keep the data's own velocity.
    """
    group = len(x_t) // 4
    real = slice(0, 3 * group)
    t = rows.t[real]
    conditional = frozen(x_t[real], t, t)
    base = torch.cat([conditional[:group], (rows.z - rows.x)[group : 2 * group], conditional[2 * group :]])
    without = unconditional(x_t[group : 3 * group], t[group:], t[group:])
    pushed = losses.guided(conditional[group:], without, base[group:], guidance)
    return torch.cat([base[:group], pushed])


class TwinFlow:
    """The models of stage 3 and one training step."""

    def __init__(
        self,
        flow: Denoiser,
        tokenizer: PreTrainedTokenizerFast,
        settings: TwinFlowSettings,
        *,
        compiled: bool,
    ) -> None:
        self.settings, self.tokenizer, self.text = (
            settings,
            tokenizer,
            flow.requires_grad_(requires_grad=False),
        )
        self.student = deepcopy(flow.transformer).requires_grad_(requires_grad=True)
        self.teacher = Average(self.student, settings.teacher_ema)
        self.average = Average(self.student, settings.ema)
        self.frozen = deepcopy(flow.transformer)
        if compiled:
            for model in (self.student, self.teacher.module, self.frozen):
                compile_blocks(model)

    def _bound(self, model: SingleStreamTransformer, condition: Condition) -> Velocity:
        return in_chunks(partial(bind, model), condition, self.settings.batch // 4)

    def loss(self, x: Tensor, condition: Condition, empty: Condition) -> dict[str, Tensor]:
        """All terms of one batch: `base`, `adv` and `rectify`, scalars."""
        group = len(x) // 4
        first, last = condition[slice(0, group)], condition[slice(3 * group, 4 * group)]
        noise = torch.randn_like(x[:group])
        one, zero = x.new_ones(group), x.new_zeros(group)
        with torch.no_grad():
            fake = noise - self._bound(self.student, last)(noise, one, zero)
        rows = draw_rows(x, fake)
        x_t = losses.mix(rows.x, rows.z, rows.t)
        prediction = bind(self.student, condition)(x_t, rows.t, rows.r)

        real = condition[slice(0, 3 * group)]
        target = real_target(
            rows, x_t, self._bound(self.frozen, real), self._bound(self.frozen, empty), self.settings.guidance
        )
        t, r = rows.t[: 3 * group], rows.r[: 3 * group]
        teacher = self._bound(self.teacher.module, real)
        goal = losses.rcgm_target(teacher, x_t[: 3 * group], t, r, target, order=self.settings.order)
        bounded = losses.clamped_target(prediction[: 3 * group], goal, t, r)
        base = losses.weighted_l2(prediction[: 3 * group], bounded, losses.gap_weight(t, r))
        adv = losses.flow_matching(prediction[3 * group :], fake, rows.z[3 * group :])

        leap = prediction[:group]
        sample = (rows.z[:group] - leap).detach()
        when = 0.02 + 0.96 * torch.rand_like(one)
        pull = losses.rectification_gradient(
            self._bound(self.student, first), sample, torch.randn_like(sample), when
        )
        rectify = (leap - (leap - pull).detach()).square().mean()
        return {"base": base, "adv": adv, "rectify": rectify}


def train_twinflow(
    flow: Denoiser,
    pool: LatentSource,
    tokenizer: PreTrainedTokenizerFast,
    settings: TwinFlowSettings,
    *,
    device: torch.device,
    compiled: bool,
) -> Denoiser:
    """Distil a flow model; returns it with the averaged student as its transformer."""
    twin = TwinFlow(flow, tokenizer, settings, compiled=compiled)
    optimizer = Optimizer(
        [],
        twin.student.parameters(),
        learning_rate=settings.learning_rate,
        betas=(0.9, 0.95),
        final_share=settings.final_share,
        warm_up=settings.warm_up,
    )
    chance = torch.Generator().manual_seed(2)
    clock = Clock("twinflow", settings.seconds)
    for step in clock.steps():
        pool.refresh()
        width = bucket(settings.long_share, chance)
        x, captions = pool.sample(settings.batch, width)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            condition = twin.text.embed(captions)
            empty = twin.text.embed(empty_captions(tokenizer, settings.batch // 2, width, device))
        terms = twin.loss(x, condition, empty)
        loss = 0.75 * terms["base"] + 0.25 * terms["adv"] + settings.rectify * terms["rectify"]
        norm = optimizer.step(loss, step, clock.progress)
        twin.teacher.update()
        twin.average.update()
        clock.report(settings.batch, **{name: term.detach() for name, term in terms.items()}, gradient=norm)
    say(f"twinflow: {clock.step} steps, {clock.step * settings.batch / 1e6:.2f} M rows")
    flow.transformer = twin.average.module
    return flow
