"""The deep-compression decoder (DC-AE) in the form that serves, channels last throughout.

At 1024x1024 nine tenths of its time are convolutions. What stands between them is one pass each: a bias and
SiLU, a norm with the residual, the bias and shortcut of an upsampling, the gate of a feed-forward layer.
"Double, then convolve" is one transposed convolution of 4/9 of the work
(:mod:`twinshot_engine.vae.folding`); the last convolution's products are made where the last norm is.

Source: Chen et al., arXiv 2410.10733; Cai et al., arXiv 2205.14756 (EfficientViT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.deep_compression_blocks import EPS, Norm, build_block, frozen, images
from twinshot_engine.vae.deep_compression_config import DeepCompressionConfig
from twinshot_engine.vae.deep_compression_stored import StoredDeepCompression, StoredUpsampler
from twinshot_engine.vae.folding import folded_kernel
from twinshot_engine.vae.pixel_decoder import PixelDecoder
from twinshot_kernels import pixel_norm, pixel_norm_taps, quantize_pixels, quantize_taps, sum_taps

_COLUMN_MULTIPLE = 8
"""Products of 16 bit that are written at a time."""


class _LastConvolution(nn.Module):
    """Norm, ReLU and a 3x3 convolution to few channels."""

    def __init__(self, norm: nn.Module, conv: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = Norm(norm)
        weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
        taps = weight.permute(1, 2, 3, 0).flatten(1)
        self.taps = frozen(functional.pad(taps, (0, -taps.shape[1] % _COLUMN_MULTIPLE)), dtype)
        self.bias = frozen(bias, torch.float32)

    def pixels(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to ``[B, out, H, W]`` fp32."""
        return sum_taps(self._products(x), len(self.bias)) + self.bias[:, None, None]

    def levels(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to ``[B, H, W, out]``, uint8, from values in [-1, 1]."""
        return quantize_taps(self._products(x), self.bias)

    def _products(self, x: Tensor) -> Tensor:
        return pixel_norm_taps(x, self.norm.weight, self.norm.bias, self.taps, EPS)


class _LastUpsampling(nn.Module):
    """Norm, activation and a convolution that doubles the size: the end of a lighter variant."""

    def __init__(
        self, norm: nn.Module, upsampler: StoredUpsampler, config: DeepCompressionConfig, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.norm, self.interpolate = Norm(norm), config.interpolate
        self.activation = functional.silu if config.conv_act_fn == "silu" else functional.relu
        weight = upsampler.conv.weight
        self.weight = frozen(folded_kernel(weight) if config.interpolate else weight, dtype)
        self.bias = frozen(upsampler.conv.get_parameter("bias"), torch.float32)

    def pixels(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to ``[B, out, 2H, 2W]`` fp32."""
        active = images(self.activation(pixel_norm(x, self.norm.weight, self.norm.bias, EPS)))
        if self.interpolate:
            doubled = functional.conv_transpose2d(active, self.weight, stride=2, padding=1)
            return doubled.float() + self.bias[:, None, None]
        packed = functional.conv2d(active, self.weight, padding=1).float() + self.bias[:, None, None]
        return functional.pixel_shuffle(packed, 2)

    def levels(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to ``[B, 2H, 2W, out]``, uint8, from values in [-1, 1]."""
        return quantize_pixels(self.pixels(x))


class DeepCompressionDecoder(PixelDecoder):
    """The serving form of a loaded :class:`StoredDeepCompression`, which is used up level by level.

    Nothing in it waits for the device or depends on values, so a CUDA graph can hold it.

    Args:
        stored: where the weights come from, in fp32, so that sums of weights are rounded once.
        dtype: type of weights and activations; norms and biases are fp32.
    """

    def __init__(self, stored: StoredDeepCompression, dtype: torch.dtype) -> None:
        super().__init__()
        config, layers = stored.config, stored.decoder
        self.config, self.dtype = config, dtype
        self.conv_in = frozen(layers.conv_in.weight, dtype)
        self.bias_in = frozen(layers.conv_in.get_parameter("bias"), dtype)
        self.blocks = nn.ModuleList()
        for level in reversed(range(len(layers.up_blocks))):
            for block in layers.up_blocks[level].children():
                self.blocks.append(build_block(block, config, dtype))
            layers.up_blocks[level] = nn.Sequential()  # two forms of one level at a time
        last = layers.conv_out
        self.last = (
            _LastUpsampling(layers.norm_out, last, config, dtype)
            if isinstance(last, StoredUpsampler)
            else _LastConvolution(layers.norm_out, last, dtype)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents ``[B, latent_channels, h, w]`` to fp32 pixels ``[B, 3, f h, f w]``; not clamped."""
        return self.last.pixels(self._decode(latents))

    def decode_to_bytes(self, latents: Tensor) -> Tensor:
        """Map latents ``[B, latent_channels, h, w]`` to images ``[B, f h, f w, 3]``, uint8."""
        return self.last.levels(self._decode(latents))

    def _decode(self, latents: Tensor) -> Tensor:
        raw = (latents / self.config.scaling_factor).to(self.dtype)
        raw = raw.contiguous(memory_format=torch.channels_last)
        x = functional.conv2d(raw, self.conv_in, self.bias_in, padding=1)
        if self.config.in_shortcut:
            x = x + raw.repeat_interleave(x.shape[1] // raw.shape[1], dim=1)
        x = x.permute(0, 2, 3, 1).contiguous()
        for block in self.blocks:
            x = block(x)
        return x
