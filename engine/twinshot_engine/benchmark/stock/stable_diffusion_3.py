"""Stable Diffusion 3.5 by plain diffusers and transformers, with the same random weights.

The modules run as ``StableDiffusion3Pipeline`` runs them without guidance: three encoders one after another
on padded prompts, the T5 without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.benchmark.stock.kl import StockKL
from twinshot_engine.benchmark.stock.pipeline import import_diffusers
from twinshot_engine.text import PromptTokenizer, Tokens
from twinshot_engine.text.joint_encoders import T5_TOKENS
from twinshot_engine.text.joint_prompt import JointTokenizer

_TIME_OF_NOISE = 1000.0


class StockCaption(NamedTuple):
    """What the transformer is given of a prompt: tokens ``[1, L, joint]`` and pool ``[1, pooled]``."""

    embeddings: Tensor
    pooled: Tensor


class _TwoEmbedders(nn.Module):
    """TwinFlow's embedding of a time, a pooled prompt and the target time 0."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, time: Tensor, pooled: Tensor) -> Tensor:
        """Embed times ``[B]`` from 0 to 1000."""
        gap = (time / _TIME_OF_NOISE).unsqueeze(1).to(pooled.dtype)
        embedding: Tensor = self.first(time, pooled) + self.second(torch.zeros_like(time), pooled) * gap
        return embedding


class StockStableDiffusion3(StockKL):
    """See :class:`~twinshot_engine.benchmark.stock.pipeline.StockPipeline`."""

    @cached_property
    def clips(self) -> list[nn.Module]:
        """Transformers' two CLIPs."""
        return [self._clip("text_encoder"), self._clip("text_encoder_2")]

    @cached_property
    def t5(self) -> Any:
        """Transformers' T5 encoder."""
        from transformers import T5Config, T5EncoderModel

        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**self.checkpoint.read_json("text_encoder_3")))
        self.fill(model, "text_encoder_3")
        model.encoder.embed_tokens = model.shared  # one parameter, which moving off the meta device splits
        return model

    @cached_property
    def transformer(self) -> Any:
        """Diffusers' transformer, with TwinFlow's second embedder beside its own."""
        diffusers = import_diffusers()
        with torch.device("meta"):
            model = diffusers.SD3Transformer2DModel(**self.checkpoint.read_json("transformer"))
            model.time_text_embed_2 = type(model.time_text_embed)(
                embedding_dim=model.inner_dim, pooled_projection_dim=model.config.pooled_projection_dim
            )
        self.fill(model, "transformer")
        model.time_text_embed = _TwoEmbedders(model.time_text_embed, model.time_text_embed_2)
        return model

    def tokenizer(self) -> PromptTokenizer:
        """One tokenizer thrice."""
        tokenizer = self.checkpoint.tokenizer(chat=False)
        return JointTokenizer((tokenizer, tokenizer), tokenizer, self._clip_tokens, T5_TOKENS)

    def encode(self, tokens: Tokens) -> StockCaption:
        """Embed a prompt by all encoders."""
        ids, length = tokens.ids.to(self.device), self._clip_tokens
        hidden, pooled = [], []
        for clip, own in zip(self.clips, (ids[:, :length], ids[:, length : 2 * length]), strict=True):
            read = clip(own, output_hidden_states=True)
            hidden.append(read.hidden_states[-2])
            pooled.append(read.text_embeds)
        long = self.t5(ids[:, 2 * length :])[0]
        short = torch.cat(hidden, dim=-1)
        wide = functional.pad(short, (0, long.shape[-1] - short.shape[-1]))
        return StockCaption(torch.cat((wide, long), dim=1), torch.cat(pooled, dim=-1))

    def denoise(self, latents: Tensor, caption: StockCaption) -> Tensor:
        """Take one step."""
        t = torch.full((1,), _TIME_OF_NOISE, device=self.device)
        velocity = self.transformer(
            hidden_states=latents.to(self.dtype),
            encoder_hidden_states=caption.embeddings,
            pooled_projections=caption.pooled,
            timestep=t,
            return_dict=False,
        )[0]
        step: Tensor = velocity.float()
        return latents - step

    def repeated(self) -> Sequence[nn.Module]:
        """Blocks of the transformer, layers of the encoders, and the decoder."""
        layers = [layer for clip in self.clips for layer in cast("Any", clip).text_model.encoder.layers]
        blocks = (*self.transformer.transformer_blocks, *layers, *self.t5.encoder.block)
        return cast("tuple[nn.Module, ...]", (*blocks, self.vae.decoder))

    @property
    def _clip_tokens(self) -> int:
        tokens: int = self.checkpoint.read_json("text_encoder")["max_position_embeddings"]
        return tokens

    def _clip(self, name: str) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        config = CLIPTextConfig(**self.checkpoint.read_json(name))
        with torch.device("meta"):
            model = CLIPTextModelWithProjection(config)
        self.fill(model, name)
        positions = torch.arange(config.max_position_embeddings, device=self.device)
        model.text_model.embeddings.position_ids = positions.expand((1, -1))
        return model
