"""Autoencoders: between pixels and latents."""

from twinshot_engine.vae.fused import FusedDecoder
from twinshot_engine.vae.kl import AutoencoderKL, KLDecoder
from twinshot_engine.vae.kl_config import KLConfig
from twinshot_engine.vae.pixel_decoder import PixelDecoder
from twinshot_engine.vae.serving import serving_decoder

__all__ = ["AutoencoderKL", "FusedDecoder", "KLConfig", "KLDecoder", "PixelDecoder", "serving_decoder"]
