"""Training data without files: scenes drawn from seeds, their captions as tokens, their latents in a pool.

Scenes are prepared on all CPU cores as plain arrays; a GPU draws and encodes them. A pool of latents is
used several times with fresh noise and replaced little by little, so encoding costs a tenth of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_distill.miniature.tokenizer import templated
from twinshot_distill.world.captions import caption
from twinshot_distill.world.composer import Composer, SceneBatch, arrange, to_device
from twinshot_distill.world.scenes import sample_training_scene
from twinshot_engine.vae.kl import AutoencoderKL

SHORT, LONG = 32, 64
_CHUNK = 5_000


class Captions(NamedTuple):
    """Right-padded token ids [N, L] and their lengths [N]."""

    tokens: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Corpus:
    """N scenes and two captions of each: a plain one of at most 32 tokens, a wordy one of at most 64.

    Token arrays are uint16 [N, 32] and [N, 64], lengths int64 [N].
    """

    scenes: SceneBatch
    short: NDArray[np.uint16]
    short_lengths: NDArray[np.int64]
    long: NDArray[np.uint16]
    long_lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.short)


def _tokenise(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], width: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    rows = tokenizer([templated(text) for text in texts]).input_ids
    lengths = np.array([min(len(row), width) for row in rows], np.int64)
    tokens = np.full((len(rows), width), tokenizer.pad_token_id, np.uint16)
    for index, row in enumerate(rows):
        tokens[index, : lengths[index]] = row[:width]
    return tokens, lengths


def _chunk(folder: Path, seed: str, count: int) -> Corpus:
    rng = Random(seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    scenes = [sample_training_scene(rng) for _ in range(count)]
    short = _tokenise(tokenizer, [caption(rng, scene) for scene in scenes], SHORT)
    long = _tokenise(tokenizer, [caption(rng, scene, wordy=True) for scene in scenes], LONG)
    return Corpus(arrange(rng, scenes), *short, *long)


def build_corpus(tokenizer: Path, count: int, *, seed: str, workers: int) -> Corpus:
    """Draw `count` training scenes with captions on `workers` processes; the same seed, the same corpus."""
    sizes = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]
    seeds = [f"{seed}-{index}" for index in range(len(sizes))]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_chunk, [tokenizer] * len(sizes), seeds, sizes))
    scenes = SceneBatch(
        *(
            np.concatenate([getattr(part.scenes, name) for part in parts])
            for name in ("variants", "boxes", "backgrounds", "picks")
        )
    )
    names = ("short", "short_lengths", "long", "long_lengths")
    return Corpus(scenes, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class LatentSource(Protocol):
    """What stages 2 and 3 draw their batches from."""

    @property
    def position(self) -> int:
        """How many scenes were used so far."""

    def renew(self, step: int) -> None:
        """Replace some of the latents, if it is time to at this step."""

    def refill(self, position: int) -> None:
        """Hold what was held at an earlier position."""

    def sample(self, count: int, width: int) -> tuple[Tensor, Captions]:
        """Random latents [count, C, 32, 32] and their captions in the bucket `width`."""


def frozen_encode(encoder: AutoencoderKL, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """The encoder's mean as a function of pictures [B, 3, 256, 256] in -1..1, without gradients, in bf16."""
    encode = torch.compile(encoder.encode, dynamic=False) if compiled else encoder.encode

    @torch.no_grad()
    def mean_of(pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, torch.bfloat16):
            mean, _ = encode(pictures.contiguous(memory_format=torch.channels_last))
        return mean

    return mean_of


class LatentPool:
    """Latents [P, C, 32, 32] bf16 with their captions on the training device, renewed as training goes on.

    The encoder must be frozen. Every `period` steps the oldest entries are overwritten with the corpus's next
    scenes, always `portion` of them, so that one compiled shape serves.
    """

    def __init__(
        self,
        corpus: Corpus,
        composer: Composer,
        encoder: AutoencoderKL,
        size: int,
        portion: int,
        period: int = 1,
        *,
        compiled: bool,
    ) -> None:
        self._corpus, self._composer, self._encoder = corpus, composer, encoder
        self._portion, self._period = portion, period
        self._encode = frozen_encode(encoder, compiled=compiled)
        self._position = 0
        device = composer.device
        channels, side = encoder.config.latent_channels, 256 // encoder.config.downscale
        self._latents = torch.empty(size, channels, side, side, dtype=torch.bfloat16, device=device)
        self._captions = {
            width: Captions(
                torch.empty(size, width, dtype=torch.int32, device=device),
                torch.empty(size, dtype=torch.int64, device=device),
            )
            for width in (SHORT, LONG)
        }
        self.refill(-(-size // portion) * portion)

    @property
    def position(self) -> int:
        """How many scenes were used so far."""
        return self._position

    def refill(self, position: int) -> None:
        """Hold what was held when `position` scenes, a multiple of the portion, had been used."""
        if position == self._position:
            return
        held = -(-len(self._latents) // self._portion) * self._portion
        self._position = max(0, position - held)
        while self._position < position:
            self.refresh()

    def renew(self, step: int) -> None:
        """Replace the oldest entries, if it is time to."""
        if step % self._period == 0:
            self.refresh()

    def refresh(self) -> None:
        """Replace the oldest entries."""
        count = self._portion
        used = np.arange(self._position, self._position + count)
        rows = used % len(self._corpus)
        slots = to_device(used % len(self._latents), self._composer.device)
        mean = self._encode(self._composer.render(self._corpus.scenes[rows]))
        self._latents[slots] = self._encoder.normalize(mean.float()).bfloat16()
        for width, tokens, lengths in (
            (SHORT, self._corpus.short, self._corpus.short_lengths),
            (LONG, self._corpus.long, self._corpus.long_lengths),
        ):
            kept = self._captions[width]
            kept.tokens[slots] = to_device(tokens[rows].astype(np.int32), kept.tokens.device)
            kept.lengths[slots] = to_device(lengths[rows], kept.lengths.device)
        self._position += count

    def sample(self, count: int, width: int) -> tuple[Tensor, Captions]:
        """Random latents float32 [count, C, 32, 32] and their captions in the bucket `width` (32 or 64)."""
        chosen = torch.randint(len(self._latents), (count,), device=self._latents.device)
        kept = self._captions[width]
        return self._latents[chosen].float(), Captions(kept.tokens[chosen], kept.lengths[chosen])
