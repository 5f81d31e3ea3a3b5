"""The KL autoencoder of Flux and Z-Image, loadable from diffusers' ``AutoencoderKL`` weights.

Source: Rombach et al., arXiv 2112.10752; the layout is diffusers'.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.kl_blocks import DownBlock, MidBlock, UpBlock, group_norm
from twinshot_engine.vae.kl_config import KLConfig
from twinshot_engine.vae.pixel_decoder import PixelDecoder


class Encoder(nn.Module):
    """Pixels to the moments of a latent distribution."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(*pair, config, last=i == len(widths) - 1)
            for i, pair in enumerate(pairwise((widths[0], *widths)))
        )
        self.mid_block = MidBlock(config)
        self.conv_norm_out = group_norm(widths[-1], config.norm_num_groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map ``[B, 3, H, W]`` to ``[B, 2 * latent_channels, H/f, W/f]``."""
        x = self.conv_in(pixels)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(
            UpBlock(*pair, config, last=i == len(widths) - 1)
            for i, pair in enumerate(pairwise((widths[0], *widths)))
        )
        self.conv_norm_out = group_norm(widths[-1], config.norm_num_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Map ``[B, latent_channels, h, w]`` to ``[B, 3, f h, f w]``."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return out


class KLDecoder(PixelDecoder):
    """The half of the autoencoder that serving needs."""

    ENCODER_PARAMETERS = ("encoder.", "quant_conv.")
    """Prefixes of the parameters in a full checkpoint that this half does not have."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        channels = config.latent_channels
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    def decode(self, latents_raw: Tensor) -> Tensor:
        """Decode latents in the autoencoder's own scale.

        Args:
            latents_raw: ``[B, latent_channels, h, w]``, as :meth:`denormalize` returns them.

        Returns:
            ``[B, 3, f h, f w]``, nominally in [-1, 1], not clamped.
        """
        z = latents_raw if self.post_quant_conv is None else self.post_quant_conv(latents_raw)
        pixels: Tensor = self.decoder(z)
        return pixels

    def normalize(self, latents_raw: Tensor) -> Tensor:
        """Bring the autoencoder's latents to the scale of the transformer."""
        return (latents_raw - self.config.shift_factor) * self.config.scaling_factor

    def denormalize(self, latents: Tensor) -> Tensor:
        """Bring the transformer's latents to the scale of the autoencoder."""
        return latents / self.config.scaling_factor + self.config.shift_factor

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents of any type in the transformer's scale to pixels; the way of a request."""
        return self.decode(self.denormalize(latents).to(self.decoder.conv_in.weight.dtype))


class AutoencoderKL(KLDecoder):
    """The whole autoencoder, for training and for encoding pictures."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        moments = 2 * config.latent_channels
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.use_quant_conv else None

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels ``[B, 3, H, W]`` in [-1, 1].

        Returns:
            Mean and log variance, each ``[B, latent_channels, H/f, W/f]`` in the autoencoder's own scale;
            the log variance is clamped to [-30, 20] as diffusers does.
        """
        moments = self.encoder(pixels)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)
