"""Look at a model while it is trained: fixed prompts, drawn by the flow model in many guided steps."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_distill.losses import data_estimate
from twinshot_distill.miniature.dataset import SHORT, Captions
from twinshot_distill.miniature.denoiser import Denoiser, empty_captions, velocity
from twinshot_distill.miniature.tokenizer import templated
from twinshot_distill.world.captions import plain_caption
from twinshot_distill.world.scenes import TASKS, sample_scene


def preview_prompts(count: int) -> list[str]:
    """The same prompts every time: held-out scenes of the six tasks in turn."""
    rng = Random("preview")
    return [plain_caption(sample_scene(rng, TASKS[index % 6], "unseen")) for index in range(count)]


def _captions(tokenizer: PreTrainedTokenizerFast, prompts: list[str], device: torch.device) -> Captions:
    rows = tokenizer([templated(prompt) for prompt in prompts], padding="max_length", max_length=SHORT)
    lengths = torch.tensor([sum(mask) for mask in rows.attention_mask], device=device)
    return Captions(torch.tensor(rows.input_ids, device=device), lengths)


@torch.no_grad()
def sample_flow(
    model: Denoiser, tokenizer: PreTrainedTokenizerFast, prompts: list[str], *, steps: int, guidance: float
) -> Tensor:
    """Latents [N, 8, 32, 32] after Euler steps with classifier-free guidance; 1 step leaves it out."""
    device = next(model.parameters()).device
    condition = model.embed(_captions(tokenizer, prompts, device))
    empty = model.embed(empty_captions(tokenizer, len(prompts), SHORT, device))
    x = torch.randn(len(prompts), 8, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    times = torch.linspace(1, 0, steps + 1, device=device)
    for now, then in pairwise(times):
        t = now.expand(len(prompts))
        v = velocity(model.transformer, x, t, t if steps > 1 else torch.zeros_like(t), condition)
        if steps > 1:
            v = v + (guidance - 1) * (v - velocity(model.transformer, x, t, t, empty))
        x = data_estimate(x, v, (now - then).expand(len(prompts)))
    return x
