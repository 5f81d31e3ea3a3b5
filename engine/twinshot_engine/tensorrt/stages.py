"""A model's three stages as modules that can be exported, with the shapes they shall take.

The batch and the padded prompt length stay open. The size is fixed: a family's positions and padding depend
on it, and a decoder's best convolutions too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from twinshot_engine.families.model import Model
from twinshot_engine.tensorrt.manifest import DECODER, TEXT, TRANSFORMER
from twinshot_engine.text import Caption
from twinshot_engine.types import Size

MOST_BATCH = 16
"""Largest batch that an exported graph promises to take; an engine's profiles say what it was built for."""

_IDS = 97
"""Below this, token ids are safe to make up in any vocabulary."""


class Buckets(NamedTuple):
    """Padded prompt lengths ``first + step * i`` for ``amount`` values of i."""

    first: int
    step: int
    amount: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Buckets:
        """The evenly spaced lengths among which are all that a tokenizer lists."""
        step = math.gcd(*(length - lengths[0] for length in lengths))
        return cls(lengths[0], step, (lengths[-1] - lengths[0]) // step + 1 if step else 1)

    def length(self, index: int) -> int:
        """The padded length of bucket ``index``."""
        return self.first + self.step * index


class Port(NamedTuple):
    """An input or output of a stage.

    Attributes:
        name: in the exported graph.
        dtype: of its values.
        sides: for each dimension, its length as ``(fixed, per_token)``: ``fixed + per_token * L`` for a
            prompt padded to L tokens; None for the batch.
    """

    name: str
    dtype: torch.dtype
    sides: tuple[tuple[int, int] | None, ...]

    def shape(self, batch: int, tokens: int) -> tuple[int, ...]:
        """The shape for a batch and a padded prompt length."""
        return tuple(batch if side is None else side[0] + side[1] * tokens for side in self.sides)


@dataclass(frozen=True)
class Stage:
    """A stage at one size.

    Attributes:
        name: of its files, such as ``transformer-1024x1024``.
        kind: ``text``, ``transformer`` or ``decoder``.
        size: in pixels; None for the text encoder.
        module: takes the inputs and returns the outputs, in order.
        inputs: with their shapes.
        outputs: likewise.
        buckets: prompt lengths.
    """

    name: str
    kind: str
    size: Size | None
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    buckets: Buckets

    def open_sides(self) -> tuple[dict[int, Any], ...]:
        """For each input, which dimensions are open, as ``torch.export`` wants to hear it."""
        batch = Dim("batch", min=1, max=MOST_BATCH)
        bucket = Dim("bucket", min=1, max=max(self.buckets.amount, 2))
        return tuple(_open(port, self.buckets, batch, bucket) for port in self.inputs)


def export_stages(model: Model, sizes: Sequence[Size]) -> Iterator[Stage]:
    """Take a model apart: its text encoder, then a transformer and a decoder for each size."""
    buckets = Buckets.of(model.tokenizer.buckets)
    ids = Port("ids", torch.int64, (None, (0, 1)))
    length = Port("length", torch.int64, (None,))
    captions = tuple(_caption_ports(model, buckets))
    yield Stage(TEXT, TEXT, None, _Text(model), (ids, length), captions, buckets)
    constants = next(iter(model.passes.values()))[0]
    for size in sizes:
        suffix = f"{size[0]}x{size[1]}"
        sides = tuple((side, 0) for side in model.latent_shape(*size))
        latents, fresh, moved = (
            Port(name, torch.float32, (None, *sides)) for name in ("latents", "fresh", "moved")
        )
        modulation = _fixed("modulation", constants.modulation)
        weights = _fixed("weights", constants.weights)
        inputs = (latents, fresh, modulation, weights, *captions)
        transformer = f"{TRANSFORMER}-{suffix}"
        yield Stage(transformer, TRANSFORMER, size, _Transformer(model), inputs, (moved,), buckets)
        images = Port("images", torch.uint8, (None, (size[1], 0), (size[0], 0), (3, 0)))
        yield Stage(f"{DECODER}-{suffix}", DECODER, size, _Decoder(model), (latents,), (images,), buckets)


@torch.no_grad()
def sample_inputs(stage: Stage, model: Model, batch: int, tokens: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Make inputs of one shape as the stage meets them: noise, and captions of made-up prompts.

    Args:
        stage: whose inputs.
        model: that it was taken from, loaded.
        batch: images.
        tokens: padded prompt length.
        seed: of everything drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    constants = next(iter(model.passes.values()))[0]
    made: Mapping[str, Tensor] = {"modulation": constants.modulation, "weights": constants.weights}
    ids = torch.randint(1, _IDS, (batch, tokens), generator=generator)
    lengths = torch.arange(tokens, tokens - batch, -1).clamp(min=1)
    if stage.kind == TEXT:
        return ids, lengths
    if stage.kind == TRANSFORMER:
        rows = zip(*(model.encode(ids[i : i + 1], lengths[i : i + 1]) for i in range(batch)), strict=True)
        captions = (torch.cat(row) for row in rows)
        made = {**made, **dict(zip((port.name for port in stage.inputs[4:]), captions, strict=True))}
    return tuple(
        made[port.name]
        if port.name in made
        else torch.randn(port.shape(batch, tokens), generator=generator, dtype=port.dtype)
        for port in stage.inputs
    )


class _Wrapped(nn.Module):
    """Owns a model's parts, so that ``torch.export`` finds their weights by name."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(model.parts)
        self.model = model


class _Text(_Wrapped):
    def forward(self, ids: Tensor, length: Tensor) -> Caption:
        return self.model.encode(ids, length)


class _Transformer(_Wrapped):
    def forward(
        self, latents: Tensor, fresh: Tensor, modulation: Tensor, weights: Tensor, *caption: Tensor
    ) -> Tensor:
        return self.model.denoise(latents, fresh, caption, modulation, weights)


class _Decoder(_Wrapped):
    def forward(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)


def _caption_ports(model: Model, buckets: Buckets) -> Iterator[Port]:
    """See from two prompt lengths how the sides of a caption follow them."""
    first, second = buckets.length(0), buckets.length(0) + max(buckets.step, 1)
    pairs = zip(model.caption_like(first), model.caption_like(second), strict=True)
    for number, (short, long) in enumerate(pairs):
        slopes = [
            (after - before) // (second - first)
            for before, after in zip(short.shape[1:], long.shape[1:], strict=True)
        ]
        sides = ((side - slope * first, slope) for side, slope in zip(short.shape[1:], slopes, strict=True))
        yield Port(f"caption_{number}", short.dtype, (None, *sides))


def _fixed(name: str, like: Tensor) -> Port:
    return Port(name, like.dtype, tuple((side, 0) for side in like.shape))


def _open(port: Port, buckets: Buckets, batch: Any, bucket: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for axis, side in enumerate(port.sides):
        if side is None:
            found[axis] = batch
        elif side[1] and buckets.amount > 1:
            # Bucket 1 is the first: a side is fixed + per_token * (first - step + step * bucket).
            start = side[0] + side[1] * (buckets.first - buckets.step)
            scaled = side[1] * buckets.step * bucket
            found[axis] = scaled + start if start else scaled
    return found
