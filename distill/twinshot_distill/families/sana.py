"""SANA, on diffusers' modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from twinshot_distill.families.base import Caption, Embedding, Family
from twinshot_distill.families.diffusers_model import (
    DiffusersModel,
    open_diffusers,
    pipeline_encoders,
    unpadded,
)


class SanaModel(DiffusersModel):
    """Both of adaLN-single's outputs get the second embedder's."""

    embedder_name, time_scale, copies = "time_embed", 1000.0, False

    def predict(self, x_t: Tensor, time: Tensor, caption: Caption) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        out: Tensor = self.transformer(
            x_t,
            encoder_hidden_states=caption.tokens,
            encoder_attention_mask=caption.mask,
            timestep=time,
            return_dict=False,
        )[0]
        return out


def embed(pipeline: Any, prompts: Sequence[str]) -> list[Embedding]:
    """Embed prompts without the instruction that rewrites them."""
    tokens, mask, _, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    return [{"tokens": row} for row in unpadded(tokens, mask)]


def scale(config: Any) -> tuple[Tensor, Tensor]:
    """One factor."""
    return torch.tensor(0.0), torch.tensor(config.scaling_factor)


FAMILY = Family(
    open_model=lambda checkpoint, single: open_diffusers(
        SanaModel, SanaTransformer2DModel, checkpoint, single_time=single
    ),
    encoders=partial(pipeline_encoders, SanaPipeline, embed, scale),
    token_multiple=1,
    pixel_multiple=32,
    lora_targets=(
        *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
        *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        *("time_embed.linear", "timestep_embedder.linear_1", "timestep_embedder.linear_2"),
    ),
)
