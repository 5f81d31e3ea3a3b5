"""The decoder's form on a GPU: channels last, every pass over memory counted.

What AutoencoderKL (128, 256, 512, 512; 2 layers; 1024x1024, bf16) moves beside its convolutions, in MB by the
size at which a level works:

==============================  =====  =====  =====  ======  =====
pass                             128²   256²   512²   1024²    sum
==============================  =====  =====  =====  ======  =====
statistics alone                  101    268    805    1611   2785
group norm and SiLU               369    805   1879    3758   6811
residual and statistics           302    604    805    1611   3322
attention, by whole scores       2450                         2450
last norm, convolution, bytes                           405    405
sum                              3222   1678   3490    7385  15774
==============================  =====  =====  =====  ======  =====

Plain layers move 23.5 GB, and 6.6 more where torch adds the biases of convolutions in passes of their own.
What went: every bias, into the next pass that reads the tensor; statistics, into the residual add before
them; the residual add behind a 1x1 shortcut, into the shortcut's product; interpolation, into the
upsampler's kernel; half of the attention's projections, into the others; the last convolution, into the norm
before it and the bytes after it; scale, shift, type and layout of the latents, into one copy. Statistics that
are left stand behind convolutions, whose epilogues are not ours. Attention moves more than a kernel that
keeps scores on the chip would, and takes less time (see :func:`twinshot_kernels.wide_attention`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.vae.constants import constant
from twinshot_engine.vae.fused_blocks import (
    FusedMidBlock,
    FusedUpBlock,
    Normalizable,
    bias_of,
    layers_of,
)
from twinshot_engine.vae.kl import KLDecoder
from twinshot_engine.vae.kl_blocks import UpBlock
from twinshot_engine.vae.last_convolution import LastConvolution
from twinshot_engine.vae.pixel_decoder import PixelDecoder


class FusedDecoder(PixelDecoder):
    """The serving form of a loaded :class:`KLDecoder`, which is not needed afterwards.

    Forward only. Nothing in it waits for the device or depends on values, so a CUDA graph can hold it; let
    ``torch.backends.cudnn.benchmark`` choose the convolutions in the calls before the capture.

    Args:
        decoder: where the weights come from. Load it in fp32 to serve in bf16, so that sums and products of
            weights are rounded once.
        dtype: type of weights and activations; norms, biases and statistics are fp32. The decoder's own if
            not given.

    Raises:
        TypeError: the decoder's layers are not those of a checkpoint any more.
    """

    def __init__(self, decoder: KLDecoder, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        layers = decoder.decoder
        self.config = decoder.config
        self.dtype = dtype or layers.conv_in.weight.dtype
        shift = layers.conv_in.weight.new_full((1,), self.config.shift_factor)
        self.shift = constant(shift, torch.float32)
        self.post_quant_conv = _frozen(decoder.post_quant_conv, self.dtype)
        self.conv_in = constant(layers.conv_in.weight, self.dtype)
        self.mid_block = FusedMidBlock(layers.mid_block, bias_of(layers.conv_in), self.dtype)
        self.up_blocks, pending = _up_blocks(layers.up_blocks, self.dtype)
        self.last = LastConvolution(layers.conv_norm_out, pending, layers.conv_out, self.dtype)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, latent_channels, h, w]`` to fp32 pixels ``[B, 3, f h, f w]``; not clamped."""
        return self.last.pixels(*self._decode(latents))

    def decode_to_bytes(self, latents: Tensor) -> Tensor:
        """Decode latents ``[B, latent_channels, h, w]`` to ``[B, f h, f w, 3]``, uint8."""
        return self.last.levels(*self._decode(latents))

    def _decode(self, latents: Tensor) -> Normalizable:
        """Decode to what the last norm reads."""
        x = self._denormalize(latents)
        if self.post_quant_conv is not None:
            x = self.post_quant_conv(x)
        x, statistics = self.mid_block(functional.conv2d(x, self.conv_in, padding=1))
        for block in self.up_blocks:
            x, statistics = block(x, statistics)
        return x, statistics

    def _denormalize(self, latents: Tensor) -> Tensor:
        """Scale, shift, cast and lay out in one pass."""
        x = torch.empty_like(latents, dtype=self.dtype, memory_format=torch.channels_last)
        return torch.add(self.shift, latents, alpha=1 / self.config.scaling_factor, out=x)


def _frozen(conv: nn.Conv2d | None, dtype: torch.dtype) -> nn.Conv2d | None:
    """Copy a 1x1 convolution, bias and all."""
    if conv is None:
        return None
    copy = nn.Conv2d(conv.in_channels, conv.out_channels, 1, device="meta")
    for name, parameter in conv.named_parameters():
        setattr(copy, name, constant(parameter, dtype))
    return copy


def _up_blocks(blocks: nn.ModuleList, dtype: torch.dtype) -> tuple[nn.ModuleList, Tensor | None]:
    """Build the up blocks; returns the bias pending behind the last of them too."""
    fused = nn.ModuleList()
    pending: Tensor | None = None
    for block in layers_of(blocks, UpBlock):
        layer = FusedUpBlock(block, pending, dtype)
        fused.append(layer)
        pending = layer.pending
    return fused, pending
