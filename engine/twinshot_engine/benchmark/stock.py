"""Z-Image by plain diffusers and transformers, with the same random weights: what twinshot is compared with.

The modules run as ``ZImagePipeline`` runs them: the text encoder over a prompt padded to 512 tokens with a
mask, the transformer on lists, the decoder in its default layout, pixels to bytes on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_engine.errors import CheckpointError
from twinshot_engine.random_weights import RandomCheckpoint

PADDED_TOKENS = 512
"""What ``ZImagePipeline`` pads every prompt to."""

_IGNORED = ("t_embedder_2.",)


@dataclass
class StockPipeline:
    """The three stock modules of one random checkpoint, each made when it is first asked for."""

    checkpoint: RandomCheckpoint
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def text(self) -> nn.Module:
        """Transformers' Qwen3, whole, as the pipeline has it."""
        from transformers import Qwen3Config, Qwen3Model

        with torch.device("meta"):
            model = Qwen3Model(Qwen3Config(**self.checkpoint.read_json("text_encoder")))
        rotary = type(model.rotary_emb)(model.config).to(self.device)
        self._fill(model, "text_encoder")
        model.rotary_emb = rotary  # its frequencies are computed, not stored
        return model

    @cached_property
    def transformer(self) -> nn.Module:
        """Diffusers' transformer, which knows no second time embedder."""
        diffusers = import_diffusers()
        with torch.device("meta"):
            model = diffusers.ZImageTransformer2DModel(**self.checkpoint.read_json("transformer"))
        return self._fill(model, "transformer")

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
        return self._fill(model, "vae")

    def encode(self, ids: Tensor, length: int) -> Tensor:
        """Embed the ``length`` first of token ids ``[1, L]`` on the host: ``[length, hidden]``."""
        padded = torch.zeros(1, PADDED_TOKENS, dtype=torch.int64)
        padded[:, :length] = ids[:, :length]
        mask = torch.arange(PADDED_TOKENS)[None] < length
        states = self.text(
            input_ids=padded.to(self.device), attention_mask=mask.to(self.device), output_hidden_states=True
        ).hidden_states[-2]
        embeddings: Tensor = states[0, :length]
        return embeddings

    def denoise(self, latents: Tensor, embeddings: Tensor) -> Tensor:
        """Take one step from noise ``[1, C, h, w]`` fp32 to the data."""
        t = torch.zeros(1, device=self.device)  # Z-Image counts from noise
        inputs = list(latents.to(self.dtype).unsqueeze(2).unbind())
        prediction = self.transformer(inputs, t, [embeddings], return_dict=False)[0]
        step: Tensor = torch.stack(list(prediction)).squeeze(2).float()
        return latents + step

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``[1, C, h, w]`` to ``[1, H, W, 3]`` uint8."""
        raw = latents.to(self.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        pixels = self.vae.decode(raw, return_dict=False)[0]
        unit: Tensor = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
        return (unit * 255).round().to(torch.uint8)

    def compile(self) -> None:
        """Compile as users are told to: block by block where blocks repeat, and the decoder whole."""
        layers = (*self.transformer.layers, *self.transformer.noise_refiner, *self.text.layers)  # type: ignore[misc]
        for layer in layers:
            layer.compile(dynamic=False)
        self.vae.decoder.compile(dynamic=False)

    def _fill(self, module: nn.Module, part: str) -> nn.Module:
        stored = self.checkpoint.part(part)
        module.to(self.dtype).to_empty(device=self.device)
        wanted = {name for name in stored.headers if not name.startswith(_IGNORED)}
        weights: Mapping[str, Tensor] = dict(stored.read(wanted, self.device))
        parameters = dict(module.named_parameters())
        for name, tensor in weights.items():
            parameters[name].data.copy_(tensor)
        return module.requires_grad_(requires_grad=False).eval()


def import_diffusers() -> Any:
    """Import diffusers.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError("A comparison needs diffusers: pip install 'twinshot-server[dev]'.") from error
    return diffusers
