"""What stock pipelines with an AutoencoderKL share: its decoder, and latents of its size."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twinshot_engine.benchmark.stock.pipeline import StockPipeline, import_diffusers, to_bytes


class StockKL(StockPipeline):
    """Decodes as pipelines do: in the decoder's default layout, pixels to bytes on the device."""

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

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """One latent for 2^(levels - 1) pixels along a side."""
        config = self.checkpoint.read_json("vae")
        downscale = 2 ** (len(config["block_out_channels"]) - 1)
        return config["latent_channels"], height // downscale, width // downscale

    def decode(self, latents: Tensor) -> Tensor:
        """Decode to bytes."""
        raw = latents.to(self.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return to_bytes(self.vae.decode(raw, return_dict=False)[0])
