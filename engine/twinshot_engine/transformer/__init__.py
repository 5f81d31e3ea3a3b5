"""Denoisers: from latents, time and text to a velocity."""

from twinshot_engine.transformer.single_stream import (
    FoldedTransformer,
    SingleStreamConfig,
    SingleStreamTransformer,
)

__all__ = ["FoldedTransformer", "SingleStreamConfig", "SingleStreamTransformer"]
