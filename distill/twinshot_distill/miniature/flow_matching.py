"""Stage 2: flow matching. Text encoder and transformer learn the velocity of the straight path, together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_distill.averages import RunningAverage, frozen_copy, parameters_of
from twinshot_distill.journal import Sampler
from twinshot_distill.losses import flow_matching, mix
from twinshot_distill.miniature.configuration import FlowSettings, Run
from twinshot_distill.miniature.dataset import LONG, SHORT, Captions, LatentSource
from twinshot_distill.miniature.denoiser import Denoiser, bucket, compile_blocks, empty_captions, velocity
from twinshot_distill.miniature.stages import train_stage
from twinshot_distill.miniature.start import start_denoiser

SamplerOf = Callable[[Denoiser], Sampler]
"""Makes a sampler of a model."""


def draw_times(count: int, device: torch.device) -> Tensor:
    """Times [count]: four fifths logit-normal around .55, where structure forms, one fifth uniform."""
    structured = torch.sigmoid(0.2 + 1.1 * torch.randn(count, device=device))
    uniform = torch.rand(count, device=device)
    return torch.where(torch.rand(count, device=device) < 0.8, structured, uniform)


def drop_captions(captions: Captions, empty: Captions, share: float) -> Captions:
    """Replace a share of the captions by the empty prompt, which guidance needs to be known."""
    dropped = torch.rand(len(captions.lengths), device=captions.lengths.device) < share
    return Captions(
        torch.where(dropped[:, None], empty.tokens, captions.tokens),
        torch.where(dropped, empty.lengths, captions.lengths),
    )


class FlowTrainee:
    """The models of stage 2 and one training step."""

    def __init__(
        self, model: Denoiser, pool: LatentSource, tokenizer: PreTrainedTokenizerFast, settings: FlowSettings
    ) -> None:
        self.model, self.averaged = model, frozen_copy(model)
        self._average = RunningAverage.of(self.averaged, model, settings.ema)
        self._pool, self._settings = pool, settings
        device = next(model.parameters()).device
        self._empty = {
            width: empty_captions(tokenizer, settings.batch, width, device) for width in (SHORT, LONG)
        }

    def loss_terms(self, step: int) -> Mapping[str, Tensor]:
        """Flow matching on a batch of the pool, some of its captions dropped."""
        return self.terms(self.prepare(step))

    def prepare(self, step: int) -> int:
        """Renew the pool; a step's kind is its text bucket."""
        self._pool.renew(step)
        return bucket(self._settings.long_share)

    def terms(self, kind: int) -> Mapping[str, Tensor]:
        """The loss in the text bucket `kind`."""
        settings = self._settings
        x, captions = self._pool.sample(settings.batch, kind)
        captions = drop_captions(captions, self._empty[kind], settings.caption_drop)
        t, z = draw_times(settings.batch, x.device), torch.randn_like(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            condition = self.model.embed(captions)
        return {"loss": flow_matching(velocity(self.model.transformer, mix(x, z, t), t, t, condition), x, z)}

    def after_step(self) -> None:
        """Average the weights."""
        self._average.update()

    def tensors(self) -> Mapping[str, Tensor]:
        """The model and its average."""
        return parameters_of(model=self.model, average=self.averaged)

    def numbers(self) -> Mapping[str, float]:
        """How far average and pool are."""
        return {"decay": self._average.decay, "pool": self._pool.position}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take up numbers of an earlier state."""
        self._average.decay = numbers["decay"]
        self._pool.refill(int(numbers["pool"]))


def train_flow(
    pool: LatentSource,
    tokenizer: PreTrainedTokenizerFast,
    run: Run,
    out: Path,
    *,
    device: torch.device,
    sampler_of: SamplerOf | None = None,
) -> Denoiser:
    """Train from fresh or given weights, or from an interrupted run's state in `out`; returns the average."""
    model = Denoiser()
    if run.start:
        start_denoiser(model, tokenizer, Path(run.start))
    model = model.to(device)
    trainee = FlowTrainee(model, pool, tokenizer, run.flow)
    if run.compiled:
        compile_blocks(model.transformer)
    sampler = sampler_of(trainee.averaged) if sampler_of else None
    train_stage("flow", trainee, dict(model.named_parameters()), run.flow, run, out, sampler)
    return trainee.averaged
