"""Denoisers: from latents, time and text to a velocity."""

from twinshot_engine.transformer.single_stream import SingleStreamConfig, SingleStreamTransformer

__all__ = ["SingleStreamConfig", "SingleStreamTransformer"]
