"""Qwen-Image, on diffusers' modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor

from twinshot_distill.families.base import Caption, Embedding, Family
from twinshot_distill.families.diffusers_model import (
    DiffusersModel,
    open_diffusers,
    pipeline_encoders,
    unpadded,
)

_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    *("timestep_embedder.linear_1", "timestep_embedder.linear_2"),
)
"""The released LoRA's layers."""


class QwenImageModel(DiffusersModel):
    """Latents are packed 2 x 2 into tokens; times are read as they are."""

    embedder_name, time_scale, copies = "time_text_embed", 1.0, True

    def predict(self, x_t: Tensor, time: Tensor, caption: Caption) -> Tensor:
        """See :meth:`DiffusersModel.predict`."""
        batch, channels, height, width = x_t.shape
        rows, columns = height // 2, width // 2
        packed = x_t.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        out = self.transformer(
            packed.reshape(batch, rows * columns, channels * 4),
            encoder_hidden_states=caption.tokens,
            encoder_hidden_states_mask=None if bool(caption.mask.all()) else caption.mask,
            timestep=time,
            img_shapes=[[(1, rows, columns)]] * batch,
            return_dict=False,
        )[0]
        unpacked: Tensor = out.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return unpacked.reshape(batch, channels, height, width)


def embed(pipeline: Any, prompts: Sequence[str]) -> list[Embedding]:
    """Embed prompts in the pipeline's template."""
    tokens, mask = pipeline.encode_prompt(list(prompts))
    return [{"tokens": row} for row in unpadded(tokens, mask)]


def scale(config: Any) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each latent channel."""
    mean, spread = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    return mean.view(1, -1, 1, 1), 1 / spread.view(1, -1, 1, 1)


FAMILY = Family(
    open_model=lambda checkpoint, single: open_diffusers(
        QwenImageModel, QwenImageTransformer2DModel, checkpoint, single_time=single
    ),
    encoders=partial(pipeline_encoders, QwenImagePipeline, embed, scale),
    token_multiple=1,
    pixel_multiple=16,
    lora_targets=_TARGETS,
)
