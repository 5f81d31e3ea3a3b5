"""What the engine asks of a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from twinshot_engine.families.model import Pass
from twinshot_engine.text import Caption
from twinshot_engine.types import Size


class Advertised(NamedTuple):
    """The shapes that requests may have: any size with any batch and any padded prompt length."""

    sizes: Sequence[Size]
    batch_sizes: Sequence[int]
    tokens: Sequence[int]


class Stages(Protocol):
    """A model's stages, run one after another by one thread."""

    def prepare(self, advertised: Advertised, /) -> Iterator[tuple[str, float]]:
        """Do once whatever makes a first request slow.

        Yields a name and the fraction done before each piece of work.
        """

    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Embed token ids ``[B, L]`` and their counts ``[B]``, both on the host.

        The result is the caller's to keep.
        """

    def denoise(self, latents: Tensor, fresh: Tensor | None, caption: Caption, constants: Pass) -> Tensor:
        """Move latents ``[B, C, h, w]`` along one pass; the result is valid until the next call."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``[B, C, h, w]`` to ``[B, H, W, 3]`` uint8; the result is valid until the next call."""

    def batches(self, count: int) -> list[int]:
        """Split ``count`` images into batches that one pass can take."""

    def text_batches(self, count: int) -> list[int]:
        """Split ``count`` prompts of one padded length likewise."""


def largest_first(count: int, batch_sizes: Sequence[int]) -> list[int]:
    """Split ``count`` images into the largest of some batch sizes, 1 among them, again and again."""
    split: list[int] = []
    while count:
        split.append(max(size for size in batch_sizes if size <= count))
        count -= split[-1]
    return split
