"""Stable Diffusion 3.5, on diffusers' modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from twinshot_distill.families.base import Caption, Embedding, Family
from twinshot_distill.families.diffusers_model import DiffusersModel, open_diffusers, pipeline_encoders


class StableDiffusion3Model(DiffusersModel):
    """The second embedder reads the pooled text too, as the first does."""

    embedder_name, time_scale, copies = "time_text_embed", 1000.0, False

    def predict(self, x_t: Tensor, time: Tensor, caption: Caption) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        out: Tensor = self.transformer(
            x_t,
            encoder_hidden_states=caption.tokens,
            pooled_projections=caption.pooled,
            timestep=time,
            return_dict=False,
        )[0]
        return out


def embed(pipeline: Any, prompts: Sequence[str]) -> list[Embedding]:
    """Embed prompts with all three text encoders; padding counts as tokens."""
    words = list(prompts)
    tokens, _, pooled, _ = pipeline.encode_prompt(words, words, words, do_classifier_free_guidance=False)
    return [{"tokens": t.float(), "pooled": p.float()} for t, p in zip(tokens, pooled, strict=True)]


def scale(config: Any) -> tuple[Tensor, Tensor]:
    """One shift and one factor."""
    return torch.tensor(config.shift_factor), torch.tensor(config.scaling_factor)


FAMILY = Family(
    open_model=lambda checkpoint, single: open_diffusers(
        StableDiffusion3Model, SD3Transformer2DModel, checkpoint, single_time=single
    ),
    encoders=partial(pipeline_encoders, StableDiffusion3Pipeline, embed, scale),
    token_multiple=1,
    pixel_multiple=16,
    lora_targets=(
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("timestep_embedder.linear_1", "timestep_embedder.linear_2"),
    ),
)
