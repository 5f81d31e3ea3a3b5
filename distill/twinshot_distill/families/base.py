"""What the trainer needs of a family: an open transformer, encoders, and how captions are batched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinshot_engine.checkpoint import Checkpoint

Embedding = Mapping[str, Tensor]
"""What the text encoders make of one prompt: `tokens` [L, D], and what else the family reads, each [D]."""


@dataclass(frozen=True, slots=True)
class Caption:
    """The captions of a batch.

    Attributes:
        tokens: [B, L, D], padded on the right with zeros.
        lengths: [B], true numbers of tokens.
        pooled: [B, D], or None where the family has none.
    """

    tokens: Tensor
    lengths: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: slice, /) -> Caption:
        pooled = None if self.pooled is None else self.pooled[rows]
        return Caption(self.tokens[rows], self.lengths[rows], pooled)

    def repeated(self, count: int) -> Caption:
        """One row as `count` rows."""
        pooled = None if self.pooled is None else self.pooled.repeat(count, 1)
        return Caption(self.tokens.repeat(count, 1, 1), self.lengths.repeat(count), pooled)

    @property
    def mask(self) -> Tensor:
        """Which tokens are real: [B, L]."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


def batch_captions(embeddings: Sequence[Embedding], multiple: int, device: torch.device) -> Caption:
    """Pad embeddings to the longest one, rounded up to a multiple, as one caption."""
    longest = max(len(e["tokens"]) for e in embeddings)
    longest += -longest % multiple
    tokens = [functional.pad(e["tokens"].float(), (0, 0, 0, longest - len(e["tokens"]))) for e in embeddings]
    lengths = torch.tensor([len(e["tokens"]) for e in embeddings])
    pooled = torch.stack([e["pooled"].float() for e in embeddings]) if "pooled" in embeddings[0] else None
    return Caption(
        torch.stack(tokens).to(device), lengths.to(device), None if pooled is None else pooled.to(device)
    )


class OpenModel(nn.Module, ABC):
    """A transformer in its open form as a velocity network; its parameters are a checkpoint's.

    Attributes:
        transformer: the module whose state dict a checkpoint stores.
        single_time: feed the one time t - r / 2 instead of two (TwinFlow's LoRA variant).
    """

    def __init__(self, transformer: nn.Module, *, single_time: bool) -> None:
        super().__init__()
        self.transformer, self.single_time = transformer, single_time

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, caption: Caption) -> Tensor:
        """TwinFlow's velocity at latents x_t [B, C, h, w] fp32 on the way from t [B] to r [B]: fp32."""
        if self.single_time:
            t = r = t - r / 2
        return self.velocity(x_t, t, r, caption).float()

    @abstractmethod
    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, caption: Caption) -> Tensor:
        """The same with the family's own second time, where it has one."""

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks, which are recomputed and compiled one by one."""

    def shards(self) -> Sequence[nn.Module]:
        """Modules whose weights are gathered apart from the rest: they must be reached by calls alone."""
        return self.blocks()


class Encoders(Protocol):
    """Text encoders and autoencoder of a checkpoint, on their device, frozen."""

    def embed(self, prompts: Sequence[str]) -> list[Embedding]:
        """Embed prompts, each without padding."""

    def drop_text(self) -> None:
        """Let go of the text encoders: nothing more will be embedded."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] in -1..1 as latents in the transformer's scale."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] in the transformer's scale to pictures in -1..1, not clamped."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family is trained.

    Attributes:
        open_model: reads a checkpoint's transformer, with a second time embedder unless `single_time`.
        encoders: reads its text encoders and autoencoder onto a device.
        token_multiple: captions are padded to multiples of this.
        pixel_multiple: sides of pictures are multiples of this.
        lora_targets: layers that get adapters by default.
        most_tokens: the longest caption that a checkpoint's transformer takes; None where the encoders cut
            captions off.
    """

    open_model: Callable[[Checkpoint, bool], OpenModel]
    encoders: Callable[[Checkpoint, torch.device], Encoders]
    token_multiple: int
    pixel_multiple: int
    lora_targets: tuple[str, ...]
    most_tokens: Callable[[Checkpoint], int] | None = None
