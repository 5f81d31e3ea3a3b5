"""SANA and SANA-Sprint by plain diffusers and transformers, with the same random weights.

The modules run as ``SanaPipeline`` and ``SanaSprintPipeline`` run them: the text encoder over instruction and
prompt, padded to the instruction's length and 298 tokens with a mask, of which 300 states are kept; the
decoder in its default layout; pixels to bytes on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from twinshot_engine.benchmark.stock.pipeline import StockPipeline, import_diffusers, to_bytes
from twinshot_engine.families.sana import SPRINT_GUIDANCE
from twinshot_engine.schedule import trigonometric
from twinshot_engine.text import Tokens
from twinshot_engine.text.instruction import CAPTION_TOKENS, InstructedTokenizer, instructed


class StockSana(StockPipeline):
    """See :class:`~twinshot_engine.benchmark.stock.pipeline.StockPipeline`."""

    @cached_property
    def text(self) -> nn.Module:
        """Transformers' Gemma 2, whole, as the pipeline has it."""
        from transformers import Gemma2Config, Gemma2Model

        with torch.device("meta"):
            model = Gemma2Model(Gemma2Config(**self.checkpoint.read_json("text_encoder")))
        rotary = type(model.rotary_emb)(model.config).to(self.device)
        self.fill(model, "text_encoder")
        # These are computed, not stored.
        model.rotary_emb = rotary
        scale = torch.tensor(model.config.hidden_size**0.5, device=self.device)
        model.embed_tokens.embed_scale = nn.Buffer(scale, persistent=False)
        return model

    @cached_property
    def transformer(self) -> nn.Module:
        """Diffusers' transformer."""
        diffusers = import_diffusers()
        with torch.device("meta"):
            model = diffusers.SanaTransformer2DModel(**self.checkpoint.read_json("transformer"))
        return self.fill(model, "transformer")

    @cached_property
    def vae(self) -> Any:
        """Diffusers' autoencoder, its encoder left empty."""
        diffusers = import_diffusers()
        with torch.device("meta"):
            model = diffusers.AutoencoderDC(**self.checkpoint.read_json("vae"))
        return self.fill(model, "vae")

    def tokenizer(self) -> InstructedTokenizer:
        """The built-in checkpoint's, behind SANA's instruction."""
        return instructed(self.checkpoint.tokenizer())

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """As many levels as the decoder has."""
        config = self.checkpoint.read_json("vae")
        downscale = 2 ** (len(config["decoder_block_out_channels"]) - 1)
        return config["latent_channels"], height // downscale, width // downscale

    def encode(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Embed a prompt as 300 states ``[1, 300, hidden]`` and their mask."""
        tokenizer = self.tokenizer()
        prefix, length = len(tokenizer.prefix), int(tokens.length)
        padded = torch.zeros(1, prefix + tokenizer.max_tokens, dtype=torch.int64)
        padded[:, :prefix] = torch.tensor(tokenizer.prefix)
        padded[:, prefix : prefix + length] = tokens.ids[:, :length]
        mask = (torch.arange(padded.shape[1])[None] < prefix + length).to(self.device)
        states = self.text(input_ids=padded.to(self.device), attention_mask=mask)[0]
        kept = [0, *range(1 - CAPTION_TOKENS, 0)]
        return states[:, kept], mask[:, kept]

    def denoise(self, latents: Tensor, caption: tuple[Tensor, Tensor]) -> Tensor:
        """Take one step from noise, whose time is 1000."""
        return latents - self.predict(latents, caption, torch.full((1,), 1000.0, device=self.device))

    def predict(
        self, latents: Tensor, caption: tuple[Tensor, Tensor], time: Tensor, **options: Any
    ) -> Tensor:
        """Run the network."""
        states, mask = caption
        prediction: Tensor = self.transformer(
            latents.to(self.dtype),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=time,
            return_dict=False,
            **options,
        )[0]
        return prediction.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode to bytes."""
        raw = latents.to(self.dtype) / self.vae.config.scaling_factor
        return to_bytes(self.vae.decode(raw, return_dict=False)[0])

    def repeated(self) -> Sequence[nn.Module]:
        """Blocks of transformer and text encoder, and the decoder."""
        layers = (*self.transformer.transformer_blocks, *self.text.layers)  # type: ignore[misc]
        return cast("tuple[nn.Module, ...]", (*layers, self.vae.decoder))


class StockSanaSprint(StockSana):
    """The same with Sprint's guidance and parametrisation."""

    def denoise(self, latents: Tensor, caption: tuple[Tensor, Tensor]) -> Tensor:
        """Take one step from noise, whose angle is the schedule's first."""
        angle = trigonometric(1).t[0]
        flow = math.sin(angle) / (math.cos(angle) + math.sin(angle))
        size = math.hypot(flow, 1 - flow)
        scale = self.checkpoint.read_json("transformer")["guidance_embeds_scale"]
        guidance = torch.full((1,), SPRINT_GUIDANCE * scale, device=self.device, dtype=self.dtype)
        time = torch.full((1,), flow, device=self.device)
        scaled = latents * size
        output = self.predict(scaled, caption, time, guidance=guidance)
        velocity = ((1 - 2 * flow) * scaled + size**2 * output) / size
        return math.cos(angle) * latents - math.sin(angle) * velocity
