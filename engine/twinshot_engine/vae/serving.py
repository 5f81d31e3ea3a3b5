"""Choose the form in which a decoder serves."""

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from twinshot_engine.vae.folding import fold_upsamplers
from twinshot_engine.vae.fused import FusedDecoder
from twinshot_engine.vae.kl import KLDecoder
from twinshot_engine.vae.pixel_decoder import PixelDecoder


def serving_decoder(decoder: KLDecoder, dtype: torch.dtype | None = None) -> PixelDecoder:
    """Turn a loaded decoder into its fastest form for the device that it lies on.

    On a GPU that is a :class:`FusedDecoder`. A CPU adds biases inside its convolutions and has a fast group
    norm of its own, so there the decoder itself serves, channels last and with folded upsamplers.

    Args:
        decoder: is used up. Load it in fp32, whatever ``dtype`` is, so that sums of weights are rounded once.
        dtype: of weights and activations; the decoder's own if not given.
    """
    if decoder.decoder.conv_in.weight.is_cuda:
        return FusedDecoder(decoder, dtype)
    fold_upsamplers(decoder.decoder)
    return convert_conv2d_weight_memory_format(decoder.to(dtype), torch.channels_last)
