"""The layers of a KL autoencoder, under diffusers' parameter names.

Everything is convolution, so channels-last tensors stay channels last from end to end.
"""

from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.kl_config import KLConfig
from twinshot_kernels import attention

NORM_EPS = 1e-6


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Build the norm that every layer of the autoencoder uses."""
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions around a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]``."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        skip = x if self.conv_shortcut is None else self.conv_shortcut(x)
        out: Tensor = skip + hidden
        return out


class MidAttention(nn.Module):
    """Single-head attention over all positions of an image."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = group_norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of ``[B, C, H, W]``."""
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = (layer(tokens).unsqueeze(2) for layer in (self.to_q, self.to_k, self.to_v))
        mixed: Tensor = self.to_out[0](attention(query, key, value).squeeze(2))
        out: Tensor = x + mixed.transpose(1, 2).reshape(x.shape)
        return out


class MidBlock(nn.Module):
    """Two residual blocks, with attention between them if the config has it."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        width, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = nn.ModuleList(ResnetBlock(width, width, groups) for _ in range(2))
        attentions = [MidAttention(width, groups)] if config.mid_block_add_attention else []
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``[B, C, H, W]``."""
        x = self.resnets[0](x)
        for layer in self.attentions:
            x = layer(x)
        out: Tensor = self.resnets[1](x)
        return out


class Downsampler(nn.Module):
    """Strided 3x3 convolution that halves the size; pads right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C, H/2, W/2]``."""
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsampler(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C, 2H, 2W]``."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class DownBlock(nn.Module):
    """Residual blocks of one resolution, then a downsampler unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, config: KLConfig, *, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, config.layers_per_block, config.norm_num_groups)
        self.downsamplers = nn.ModuleList([] if last else [Downsampler(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H/2, W/2]``, or the same size at the end."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks of one resolution, then an upsampler unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, config: KLConfig, *, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(
            in_channels, out_channels, config.layers_per_block + 1, config.norm_num_groups
        )
        self.upsamplers = nn.ModuleList([] if last else [Upsampler(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, 2H, 2W]``, or the same size at the end."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


def _resnets(in_channels: int, out_channels: int, count: int, groups: int) -> nn.ModuleList:
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList(ResnetBlock(widths[i], widths[i + 1], groups) for i in range(count))
