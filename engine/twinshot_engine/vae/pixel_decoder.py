"""What the engine asks of a decoder, whatever its form."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from twinshot_kernels import quantize_pixels


class PixelDecoder(nn.Module, ABC):
    """Latents of any floating type, in the transformer's scale, to pixels."""

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Map ``[B, latent_channels, h, w]`` to ``[B, 3, f h, f w]``, nominally in [-1, 1], not clamped."""

    def decode_to_bytes(self, latents: Tensor) -> Tensor:
        """Map ``[B, latent_channels, h, w]`` to images ``[B, f h, f w, 3]``, uint8, on the same device."""
        return quantize_pixels(self(latents))
