"""Qwen-Image's decoder for one image: two dimensions, channels last, every pass over memory counted.

The stored decoder is one for video. It pads with empty frames before the first, so at one frame a kernel's
last tap along time is all that counts, and what doubles the frames never runs: 65 % of its weights are dead,
and the same sums take a third of the operations. Beside its convolutions a layer moves what it must and no
more: a residual sum makes the next layer's norm, and every bias rides along (see
:mod:`twinshot_engine.vae.fused_blocks` on *pending* biases). Source: arXiv 2508.02324; diffusers' layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.constants import constant
from twinshot_engine.vae.last_convolution import COLUMN_MULTIPLE
from twinshot_engine.vae.pixel_decoder import PixelDecoder
from twinshot_engine.vae.qwen_image_blocks import (
    Attention,
    NoNorm,
    Norm,
    PixelNorm,
    Resnet,
    Stored,
    Upsampler,
)
from twinshot_engine.vae.qwen_image_config import QwenImageVAEConfig
from twinshot_kernels import quantize_taps, sum_taps


class QwenImageDecoder(PixelDecoder):
    """The serving form on every device. Forward only; a CUDA graph can hold it.

    Args:
        config: sizes.
        weights: stored tensors by name, see :meth:`QwenImageVAEConfig.stored_shapes`. Give them in fp32 to
            serve in bf16, so that sums and products of weights are rounded once.
        dtype: type of weights and activations; norms and biases are fp32.
    """

    def __init__(self, config: QwenImageVAEConfig, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        stored = Stored(weights)
        self._denormalize_by(stored.at("post_quant_conv"))
        decoder = stored.at("decoder")
        names = _layer_names(config)
        norms = [*(_norm_of(decoder.at(name)) for name in names), PixelNorm(decoder.gamma("norm_out"))]
        self.conv_in = constant(decoder.kernel("conv_in"), dtype)
        self.first_norm = norms[0]
        pending: Tensor | None = decoder.bias("conv_in")
        self.conv_in_bias = constant(decoder.bias("conv_in"), torch.float32)
        self.layers = nn.ModuleList()
        for name, ahead in zip(names, norms[1:], strict=True):
            layer = _build(decoder.at(name), pending, ahead, dtype)
            self.layers.append(layer)
            pending = layer.pending
        taps = decoder.kernel("conv_out").permute(1, 2, 3, 0).flatten(1)
        self.taps = constant(functional.pad(taps, (0, -taps.shape[1] % COLUMN_MULTIPLE)), dtype)
        self.bias = constant(decoder.bias("conv_out"), torch.float32)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, z_dim, h, w]`` to fp32 pixels ``[B, 3, f h, f w]``; not clamped."""
        return sum_taps(self._products(latents), len(self.bias)) + self.bias[:, None, None]

    def decode_to_bytes(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, z_dim, h, w]`` to ``[B, f h, f w, 3]``, uint8."""
        return quantize_taps(self._products(latents), self.bias)

    def _denormalize_by(self, post_quant: Stored) -> None:
        """Fold the latents' mean and deviation into the 1x1 convolution that reads them."""
        kernel = post_quant.kernel().float()
        mean, deviation = (
            torch.tensor(values, device=kernel.device)
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        bias = post_quant.bias().float() + kernel.flatten(1) @ mean
        self.entry = constant(kernel * deviation[:, None, None], torch.float32)
        self.entry_bias = constant(bias, torch.float32)

    def _products(self, latents: Tensor) -> Tensor:
        """Decode to the products of every pixel with the last convolution's taps, ``[B, H, W, T]``."""
        z = functional.conv2d(latents.float(), self.entry, self.entry_bias)
        z = z.to(self.dtype, memory_format=torch.channels_last)
        x = functional.conv2d(z, self.conv_in, padding=1)
        h = self.first_norm(x, self.conv_in_bias)
        for layer in self.layers:
            x, h = layer(x, h)
        pixels = h.permute(0, 2, 3, 1)
        return _multiply(pixels.flatten(0, 2), self.taps).view(*pixels.shape[:3], -1)


def _multiply(rows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply to fp32, whatever is multiplied."""
    if rows.is_cuda and rows.dtype != torch.float32:
        return torch.mm(rows, matrix, out_dtype=torch.float32)
    return rows.float() @ matrix.float()


def _layer_names(config: QwenImageVAEConfig) -> list[str]:
    """What the decoder runs between its first convolution and its last norm, in order."""
    names = [f"mid_block.{name}" for name in ("resnets.0", "attentions.0", "resnets.1")]
    for level in range(len(config.widths)):
        names += [f"up_blocks.{level}.resnets.{index}" for index in range(config.num_res_blocks + 1)]
        names.append(f"up_blocks.{level}.upsamplers.0")
    return names[:-1]


def _norm_of(layer: Stored) -> Norm:
    """The norm of a layer's input."""
    if layer.has("norm1.gamma"):
        return PixelNorm(layer.gamma("norm1"))
    return PixelNorm(layer.gamma("norm"), silu=False) if layer.has("norm.gamma") else NoNorm()


def _build(
    layer: Stored, pending: Tensor | None, ahead: Norm, dtype: torch.dtype
) -> Resnet | Attention | Upsampler:
    """Build a layer whose input has a bias ``pending`` and whose output is read by ``ahead``."""
    if layer.has("conv1.weight"):
        return Resnet(layer, pending, ahead, dtype)
    return Attention(layer, ahead, dtype) if layer.has("proj.weight") else Upsampler(layer, ahead, dtype)
