"""Encoders that need no weights, for tests of what is done with their results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twinshot_distill.families.base import Embedding


class Mean:
    """Encoders whose results can be computed here: 2x2 means as latents, characters as tokens."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, prompts: Sequence[str]) -> list[Embedding]:
        self.embedded += prompts
        return [{"tokens": torch.tensor([[float(ord(c))] for c in p] or [[0.0]])} for p in prompts]

    def drop_text(self) -> None:
        pass

    def encode(self, pictures: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pictures, pictures.shape[-1] // 2)

    def decode(self, latents: Tensor) -> Tensor:
        return latents
