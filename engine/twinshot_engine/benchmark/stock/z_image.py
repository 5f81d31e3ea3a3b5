"""Z-Image by plain diffusers and transformers, with the same random weights.

The modules run as ``ZImagePipeline`` runs them: the text encoder over a prompt padded to 512 tokens with a
mask, the transformer on lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from twinshot_engine.benchmark.stock.kl import StockKL
from twinshot_engine.benchmark.stock.pipeline import import_diffusers
from twinshot_engine.families.z_image import MOST_PROMPT_TOKENS
from twinshot_engine.text import ChatTokenizer, PromptTokenizer, Tokens
from twinshot_engine.transformer.config import TOKEN_MULTIPLE


class StockZImage(StockKL):
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

    def tokenizer(self) -> PromptTokenizer:
        """Qwen's, with its chat template."""
        return ChatTokenizer(self.checkpoint.tokenizer(), TOKEN_MULTIPLE, MOST_PROMPT_TOKENS)

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

    def repeated(self) -> Sequence[nn.Module]:
        """Layers of both transformers, and the decoder."""
        layers = (*self.transformer.layers, *self.transformer.noise_refiner, *self.text.layers)  # type: ignore[misc]
        return cast("tuple[nn.Module, ...]", (*layers, self.vae.decoder))
