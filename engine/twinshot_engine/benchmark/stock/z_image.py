"""Z-Image by plain diffusers and transformers, with the same random weights.

The modules run as ``ZImagePipeline`` runs them: the text encoder over a prompt padded to 512 tokens with a
mask, the transformer on lists, the decoder in its default layout, pixels to bytes on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from twinshot_engine.benchmark.stock.pipeline import StockPipeline, import_diffusers, to_bytes
from twinshot_engine.families.z_image import MOST_PROMPT_TOKENS
from twinshot_engine.text import ChatTokenizer, PromptTokenizer, Tokens
from twinshot_engine.transformer.config import TOKEN_MULTIPLE


class StockZImage(StockPipeline):
    """See :class:`~twinshot_engine.benchmark.stock.pipeline.StockPipeline`."""

    @cached_property
    def text(self) -> nn.Module:
        """Transformers' Qwen3, whole, as the pipeline has it."""
        from transformers import Qwen3Config, Qwen3Model

        with torch.device("meta"):
            model = Qwen3Model(Qwen3Config(**self.checkpoint.read_json("text_encoder")))
        rotary = type(model.rotary_emb)(model.config).to(self.device)
        self.fill(model, "text_encoder")
        model.rotary_emb = rotary  # its frequencies are computed, not stored
        return model

    @cached_property
    def transformer(self) -> nn.Module:
        """Diffusers' transformer, which knows no second time embedder."""
        diffusers = import_diffusers()
        with torch.device("meta"):
            model = diffusers.ZImageTransformer2DModel(**self.checkpoint.read_json("transformer"))
        return self.fill(model, "transformer", ignored=("t_embedder_2.",))

    @cached_property
    def vae(self) -> Any:
        """Diffusers' autoencoder, its encoder left empty."""
        diffusers = import_diffusers()
        config = self.checkpoint.read_json("vae")
        levels = len(config["block_out_channels"])
        blocks = {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }
        with torch.device("meta"):
            model = diffusers.AutoencoderKL(**config, **blocks)
        return self.fill(model, "vae")

    def tokenizer(self) -> PromptTokenizer:
        """Qwen's, with its chat template."""
        return ChatTokenizer(self.checkpoint.tokenizer(), TOKEN_MULTIPLE, MOST_PROMPT_TOKENS)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Eightfold downscaling at the published size."""
        config = self.checkpoint.read_json("vae")
        downscale = 2 ** (len(config["block_out_channels"]) - 1)
        return config["latent_channels"], height // downscale, width // downscale

    def encode(self, tokens: Tokens) -> Tensor:
        """Embed a prompt as ``[length, hidden]``."""
        length = int(tokens.length)
        padded = torch.zeros(1, MOST_PROMPT_TOKENS, dtype=torch.int64)
        padded[:, :length] = tokens.ids[:, :length]
        mask = torch.arange(MOST_PROMPT_TOKENS)[None] < length
        states = self.text(
            input_ids=padded.to(self.device), attention_mask=mask.to(self.device), output_hidden_states=True
        ).hidden_states[-2]
        embeddings: Tensor = states[0, :length]
        return embeddings

    def denoise(self, latents: Tensor, caption: Tensor) -> Tensor:
        """Take one step; Z-Image counts time from noise."""
        t = torch.zeros(1, device=self.device)
        inputs = list(latents.to(self.dtype).unsqueeze(2).unbind())
        prediction = self.transformer(inputs, t, [caption], return_dict=False)[0]
        step: Tensor = torch.stack(list(prediction)).squeeze(2).float()
        return latents + step

    def decode(self, latents: Tensor) -> Tensor:
        """Decode to bytes."""
        raw = latents.to(self.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return to_bytes(self.vae.decode(raw, return_dict=False)[0])

    def repeated(self) -> Sequence[nn.Module]:
        """Layers of both transformers, and the decoder."""
        layers = (*self.transformer.layers, *self.transformer.noise_refiner, *self.text.layers)  # type: ignore[misc]
        return cast("tuple[nn.Module, ...]", (*layers, self.vae.decoder))
