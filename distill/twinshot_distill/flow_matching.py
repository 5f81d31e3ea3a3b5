"""Stage 2: flow matching. Text encoder and transformer learn the velocity of the straight path, together."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_distill.configuration import FlowSettings
from twinshot_distill.dataset import Captions, LatentSource
from twinshot_distill.denoiser import Denoiser, bind, bucket, compile_blocks, empty_captions
from twinshot_distill.losses import flow_matching, mix
from twinshot_distill.optimizer import Average, Clock, Optimizer, block_matrices
from twinshot_distill.report import say


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


def train_flow(
    pool: LatentSource,
    tokenizer: PreTrainedTokenizerFast,
    settings: FlowSettings,
    *,
    device: torch.device,
    compiled: bool,
) -> Denoiser:
    """Train from scratch; returns the averaged weights."""
    model = Denoiser().to(device)
    average = Average(model, settings.ema)
    optimizer = Optimizer(
        *block_matrices(model),
        learning_rate=settings.learning_rate,
        final_share=settings.final_share,
        warm_up=settings.warm_up,
    )
    if compiled:
        compile_blocks(model.transformer)
    chance = torch.Generator().manual_seed(1)
    clock = Clock("flow", settings.seconds)
    for step in clock.steps():
        pool.refresh()
        width = bucket(settings.long_share, chance)
        x, captions = pool.sample(settings.batch, width)
        captions = drop_captions(
            captions, empty_captions(tokenizer, settings.batch, width, device), settings.caption_drop
        )
        t, z = draw_times(settings.batch, device), torch.randn_like(x)
        with torch.autocast(device.type, torch.bfloat16):
            condition = model.embed(captions)
        loss = flow_matching(bind(model.transformer, condition)(mix(x, z, t), t, t), x, z)
        norm = optimizer.step(loss, step, clock.progress)
        average.update()
        clock.report(settings.batch, loss=loss.detach(), gradient=norm)
    say(f"flow: {clock.step} steps, {clock.step * settings.batch / 1e6:.2f} M images")
    return average.module
