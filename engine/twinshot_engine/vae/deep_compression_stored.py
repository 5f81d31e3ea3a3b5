"""A deep-compression decoder as checkpoints store it: names and shapes, under ``decoder.``.

Source: Chen et al., arXiv 2410.10733 (DC-AE); names are diffusers'.
"""

from __future__ import annotations

import torch
from torch import nn

from twinshot_engine.vae.deep_compression_config import DeepCompressionConfig

EXPANSION = 4
"""How much wider an EfficientViT block's feed-forward layer is."""


class StoredNorm(nn.Module):
    """Root-mean-square norm with scale and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))


class StoredResBlock(nn.Module):
    """Two convolutions and a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)
        self.norm = StoredNorm(channels)


class StoredScale(nn.Module):
    """Tokens of another scale: a depthwise convolution, then one matrix for each group of channels."""

    def __init__(self, channels: int, head_dim: int, kernel: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=channels // head_dim, bias=False)


class StoredAttention(nn.Module):
    """Multi-scale linear attention."""

    def __init__(self, channels: int, head_dim: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        inner = channels // head_dim * head_dim
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        scales = (StoredScale(3 * inner, head_dim, kernel) for kernel in kernels)
        self.to_qkv_multiscale = nn.ModuleList(scales)
        self.to_out = nn.Linear(inner * (1 + len(kernels)), channels, bias=False)
        self.norm_out = StoredNorm(channels)


class StoredFeedForward(nn.Module):
    """Widen, mix neighbours, gate, narrow, normalise."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = EXPANSION * channels
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = StoredNorm(channels)


class StoredViTBlock(nn.Module):
    """Attention and feed-forward layer."""

    def __init__(self, channels: int, head_dim: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.attn = StoredAttention(channels, head_dim, kernels)
        self.conv_out = StoredFeedForward(channels)


class StoredUpsampler(nn.Module):
    """A convolution before, or behind, the doubling of the size."""

    def __init__(self, channels: int, out_channels: int, *, interpolate: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels if interpolate else 4 * out_channels, 3)


class StoredDecoder(nn.Module):
    """The decoder proper."""

    def __init__(self, config: DeepCompressionConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3)
        self.up_blocks = nn.ModuleList(_level(config, level) for level in range(len(widths)))
        first = widths[0] if config.layers_per_block[0] else widths[1]
        self.norm_out = StoredNorm(first)
        self.conv_out: nn.Module = nn.Conv2d(first, config.in_channels, 3)
        if not config.layers_per_block[0]:
            self.conv_out = StoredUpsampler(first, config.in_channels, interpolate=config.interpolate)


class StoredDeepCompression(nn.Module):
    """What is read of an ``AutoencoderDC``'s file."""

    ENCODER_PARAMETERS = "encoder."

    def __init__(self, config: DeepCompressionConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = StoredDecoder(config)


def _level(config: DeepCompressionConfig, level: int) -> nn.Sequential:
    channels, layers = config.block_out_channels[level], config.layers_per_block[level]
    parts: list[nn.Module] = []
    if layers and level + 1 < len(config.block_out_channels):
        before = config.block_out_channels[level + 1]
        parts.append(StoredUpsampler(before, channels, interpolate=config.interpolate))
    for _ in range(layers):
        if config.block_types[level] == "ResBlock":
            parts.append(StoredResBlock(channels))
        else:
            scales = config.qkv_multiscales[level]
            parts.append(StoredViTBlock(channels, config.attention_head_dim, scales))
    return nn.Sequential(*parts)
