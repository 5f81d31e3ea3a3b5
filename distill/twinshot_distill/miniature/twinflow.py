"""Stage 3: TwinFlow. The flow model learns to leap: any time to any target, noise to picture in one step.

Guidance comes from the frozen flow model of stage 2, so the student needs none when it serves; the rest is
`objective` and `step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_distill.averages import RunningAverage, frozen_copy, parameters_of
from twinshot_distill.miniature.configuration import Run, TwinFlowSettings
from twinshot_distill.miniature.dataset import LONG, SHORT, LatentSource
from twinshot_distill.miniature.denoiser import (
    Condition,
    Denoiser,
    bucket,
    compile_blocks,
    empty_captions,
    in_chunks,
)
from twinshot_distill.miniature.flow_matching import SamplerOf
from twinshot_distill.miniature.stages import train_stage
from twinshot_distill.objective import Networks
from twinshot_distill.step import loss_terms


class TwinFlowTrainee:
    """The models of stage 3 and one training step."""

    def __init__(
        self,
        flow: Denoiser,
        pool: LatentSource,
        tokenizer: PreTrainedTokenizerFast,
        settings: TwinFlowSettings,
    ) -> None:
        self._pool, self._settings = pool, settings
        device = next(flow.parameters()).device
        self._empty = {width: empty_captions(tokenizer, 1, width, device) for width in (SHORT, LONG)}
        self.student = deepcopy(flow.transformer).requires_grad_(requires_grad=True)
        self.teacher, self.start = frozen_copy(self.student), frozen_copy(self.student)
        self.averaged = frozen_copy(flow)
        self._follower = RunningAverage.of(self.teacher, self.student, settings.objective.teacher_decay)
        self._average = RunningAverage.of(self.averaged.transformer, self.student, settings.ema)
        chunk = settings.batch // 4
        self.networks: Networks[Condition] = Networks(
            in_chunks(self.student, chunk),
            in_chunks(self.teacher, chunk),
            in_chunks(self.start, chunk),
            self._follower.update,
        )

    def compile(self) -> None:
        """Compile the blocks of all models."""
        for model in (self.student, self.teacher, self.start):
            compile_blocks(model)

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        """TwinFlow on a batch of the pool."""
        return self.terms(self.prepare(step))

    def prepare(self, step: int) -> int:
        """Renew the pool; a step's kind is its text bucket."""
        self._pool.renew(step)
        return bucket(self._settings.long_share)

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        """The loss in the text bucket `kind`."""
        x, captions = self._pool.sample(self._settings.batch, kind)
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
            given = self.averaged.embed(captions)
            nothing = self.averaged.embed(self._empty[kind])
        empty = nothing.repeated(len(x))
        return loss_terms(self.networks, self._settings.objective, x, given, empty)

    def after_step(self) -> None:
        """Average the weights."""
        self._average.update()

    def tensors(self) -> Mapping[str, Tensor]:
        """The student, its teacher and its average; the start and the text encoder never change."""
        return parameters_of(student=self.student, teacher=self.teacher, average=self.averaged.transformer)

    def numbers(self) -> Mapping[str, float]:
        """How far averages and pool are."""
        return {
            "teacher": self._follower.decay,
            "average": self._average.decay,
            "pool": self._pool.position,
        }

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take up numbers of an earlier state."""
        self._follower.decay, self._average.decay = numbers["teacher"], numbers["average"]
        self._pool.refill(int(numbers["pool"]))


def train_twinflow(
    flow: Denoiser,
    pool: LatentSource,
    tokenizer: PreTrainedTokenizerFast,
    run: Run,
    out: Path,
    *,
    sampler_of: SamplerOf | None = None,
) -> Denoiser:
    """Distil a flow model; returns it with the averaged student as its transformer."""
    trainee = TwinFlowTrainee(flow, pool, tokenizer, run.twinflow)
    if run.compiled:
        trainee.compile()
    sampler = sampler_of(trainee.averaged) if sampler_of else None
    train_stage(
        "twinflow", trainee, dict(trainee.student.named_parameters()), run.twinflow, run, out, sampler
    )
    return trainee.averaged
