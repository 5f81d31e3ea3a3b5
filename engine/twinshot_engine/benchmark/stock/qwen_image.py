"""Qwen-Image by plain diffusers and transformers, with the same random weights.

The modules run as ``QwenImagePipeline`` runs them: the whole prompt through Qwen2.5-VL with its
language-model head, the transformer on packed latents, the decoder in its default layout, pixels to bytes on
the device. What TwinFlow adds to the transformer's time embedding is added by a hook. In fp32 the two large
networks keep bf16 weights, which the random ones are, and widen those of a layer while it runs: 82 GB would
not fit a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from twinshot_engine.benchmark.stock.pipeline import (
    StockPipeline,
    import_diffusers,
    to_bytes,
    widen_while_running,
)
from twinshot_engine.families.qwen_image import BUCKETS
from twinshot_engine.text import PromptTokenizer, Tokens
from twinshot_engine.text.template import DROPPED_TOKENS, TemplateTokenizer

_SECOND = "time_text_embed_2."


class StockQwenImage(StockPipeline):
    """See :class:`~twinshot_engine.benchmark.stock.pipeline.StockPipeline`."""

    @cached_property
    def text(self) -> Any:
        """Transformers' Qwen2.5-VL; its vision tower, which a prompt does not enter, is one layer."""
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        config = Qwen2_5_VLConfig.from_dict(self.checkpoint.read_json("text_encoder"))
        config.vision_config.depth = 1  # type: ignore[union-attr]
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(config)
        language = model.model.language_model
        rotary = type(language.rotary_emb)(language.config).to(self.device)
        self._fill_wide(model, "text_encoder", "model.language_model.")
        language.rotary_emb = rotary  # its frequencies are computed, not stored
        return model

    @cached_property
    def transformer(self) -> Any:
        """Diffusers' transformer with TwinFlow's second time embedder."""
        diffusers = import_diffusers()
        config = self.checkpoint.read_json("transformer")
        with torch.device("meta"):
            model = diffusers.QwenImageTransformer2DModel(**config)
            second = type(model.time_text_embed)(model.inner_dim)
            positions = model.pos_embed
            model.add_module(_SECOND.rstrip("."), second)
        model.pos_embed = type(positions)(positions.theta, positions.axes_dim, positions.scale_rope)
        self._fill_wide(model, "transformer")
        model.time_text_embed.register_forward_hook(self._add_target_time)
        return model

    @cached_property
    def vae(self) -> Any:
        """Diffusers' autoencoder, its encoder and what doubles frames left empty."""
        diffusers = import_diffusers()
        with torch.device("meta"):
            model = diffusers.AutoencoderKLQwenImage(**self.checkpoint.read_json("vae"))
        return self.fill(model, "vae")

    def tokenizer(self) -> PromptTokenizer:
        """Qwen's, in the pipeline's template."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> TemplateTokenizer:
        return TemplateTokenizer(self.checkpoint.tokenizer(chat=False), BUCKETS)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Eightfold downscaling at the published size."""
        config = self.checkpoint.read_json("vae")
        downscale = 2 ** (len(config["dim_mult"]) - 1)
        return config["z_dim"], height // downscale, width // downscale

    def encode(self, tokens: Tokens) -> Tensor:
        """Embed a prompt as ``[1, length, hidden]``, the system message in front of it dropped."""
        own = tokens.ids[:, : int(tokens.length)]
        ids = torch.cat((torch.tensor([self._tokenizer.constant]), own), dim=1).to(self.device)
        out = self.text(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        embeddings: Tensor = out.hidden_states[-1][:, DROPPED_TOKENS:]
        return embeddings

    def denoise(self, latents: Tensor, caption: Tensor) -> Tensor:
        """Take one step."""
        from diffusers import QwenImagePipeline

        batch, channels, height, width = latents.shape
        packed = QwenImagePipeline._pack_latents(latents, batch, channels, height, width)  # noqa: SLF001
        prediction = self.transformer(
            hidden_states=packed.to(self.dtype),
            timestep=torch.ones(batch, device=self.device),
            encoder_hidden_states=caption,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
        )[0]
        step = QwenImagePipeline._unpack_latents(prediction, height, width, 1)  # noqa: SLF001
        return latents - cast("Tensor", step).squeeze(2).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode to bytes."""
        config = self.vae.config
        mean, deviation = (
            torch.tensor(values, device=self.device, dtype=self.dtype)[:, None, None, None]
            for values in (config.latents_mean, config.latents_std)
        )
        raw = latents.to(self.dtype).unsqueeze(2) * deviation + mean
        return to_bytes(self.vae.decode(raw, return_dict=False)[0][:, :, 0])

    def repeated(self) -> Sequence[nn.Module]:
        """Blocks and layers; the decoder gets slower when it is compiled."""
        return (*self.transformer.transformer_blocks, *self.text.model.language_model.layers)

    def _fill_wide(self, model: nn.Module, part: str, prefix: str = "") -> None:
        """Fill a network whose fp32 form would not fit."""
        self.fill(model, part, rename=lambda name: prefix + name, dtype=torch.bfloat16)
        if self.dtype == torch.float32:
            widen_while_running(model)

    def _add_target_time(self, _module: nn.Module, arguments: tuple[Any, ...], embedding: Tensor) -> Tensor:
        """Add what TwinFlow does for a target time of 0."""
        t, hidden = arguments[:2]
        second = self.transformer.get_submodule(_SECOND.rstrip("."))
        added: Tensor = second(torch.zeros_like(t), hidden) * t[:, None]
        return embedding + added
