"""What every family is turned into."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from twinshot_engine.card import Card
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import Placement
from twinshot_engine.text import TextEncoder
from twinshot_engine.transformer import SingleStreamTransformer
from twinshot_engine.vae import KLDecoder

Progress = Callable[[str, float], None]
"""Receives what is being loaded and how much is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Model:
    """The three parts of a text-to-image model, loaded and placed."""

    text: TextEncoder
    transformer: SingleStreamTransformer
    decoder: KLDecoder
    placement: Placement
    card: Card

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape ``(C, h, w)`` of the latents of a picture of ``width`` by ``height`` pixels."""
        downscale = self.decoder.config.downscale
        return self.transformer.config.in_channels, height // downscale, width // downscale

    def count_parameters(self) -> Mapping[str, int]:
        """Count what is loaded, part by part."""
        parts: dict[str, nn.Module] = {
            "text": self.text,
            "transformer": self.transformer,
            "decoder": self.decoder,
        }
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


class FamilyLoader(Protocol):
    """Builds the parts of one family."""

    def __call__(self, checkpoint: Checkpoint, placement: Placement, progress: Progress) -> Model:
        """Load a checkpoint. Raises CheckpointError if it is damaged or its parts do not fit together."""
