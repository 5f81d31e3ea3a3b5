"""Autoencoders: between pixels and latents."""

from twinshot_engine.vae.kl import AutoencoderKL, KLDecoder
from twinshot_engine.vae.kl_config import KLConfig

__all__ = ["AutoencoderKL", "KLConfig", "KLDecoder"]
