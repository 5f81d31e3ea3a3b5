"""Two ways to convolve to three channels on a GPU, without the bias; both give the same pixels.

``padded``: the convolution, with zeros for outputs up to the multiple of 8 that tensor cores read and write;
it fetches every pixel nine times for few outputs. ``taps``: one product of every pixel with all nine taps of
all outputs, which reads a pixel once, and a sum of what falls on each output, in fp32.
``benchmarks/decoder.py`` times them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.upsampling import constant

CHANNEL_MULTIPLE = 8
"""Channels of 16 bit that are read or written at a time."""


class PaddedConvolution(nn.Module):
    """One convolution; see the module.

    Args:
        weight: ``[out, in, 3, 3]``.
        dtype: of the weight in use.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        zeros = weight.new_zeros(-weight.shape[0] % CHANNEL_MULTIPLE, *weight.shape[1:])
        self.weight = constant(torch.cat([weight, zeros]), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out and more, H, W]``."""
        return functional.conv2d(x, self.weight, padding=1)


class TapConvolution(nn.Module):
    """One product and a sum; see the module.

    Args:
        weight: ``[out, in, 3, 3]``.
        dtype: of the weight in use.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        # What a pixel gives away, its neighbour on the other side of the kernel takes: hence the flip.
        self.weight = constant(weight.flip(-2, -1).permute(0, 2, 3, 1).flatten(0, 2), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]`` in fp32."""
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels).mT
        taps = self.weight.expand(batch, -1, -1)
        if x.is_cuda:
            products = torch.bmm(taps, pixels, out_dtype=torch.float32)
        else:
            products = torch.bmm(taps.float(), pixels.float())
        return functional.fold(products, (height, width), 3, padding=1)


LAST_CONVOLUTIONS: Mapping[str, type[PaddedConvolution] | type[TapConvolution]] = {
    "padded": PaddedConvolution,
    "taps": TapConvolution,
}
"""The ways by name."""
