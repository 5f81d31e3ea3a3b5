"""The checkpoint that engines are made of, in the precision that is asked for, its weights on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.families import find_family
from twinshot_engine.families.model import Model
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.tensorrt.fingerprint import fingerprint
from twinshot_engine.tensorrt.redirected import mapped, unread
from twinshot_engine.tensorrt.stages import Stage, export_stages
from twinshot_engine.types import Size


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that engines are made of.

    Attributes:
        checkpoint: it.
        fingerprint: what tells it from others.
        sizes: the sizes that engines are for, default first.
        config: how it is loaded.
        shape: the model without weights, whatever its precision.
    """

    checkpoint: Checkpoint
    fingerprint: str
    sizes: tuple[Size, ...]
    config: EngineConfig
    shape: Model

    @classmethod
    def find(cls, reference: str, sizes: tuple[Size, ...] | None, batch_sizes: Sequence[int]) -> Source:
        """Find a checkpoint and look at its configs and headers; no weight is read.

        Raises:
            CheckpointError: it is missing or damaged, or cannot draw one of the sizes.
        """
        checkpoint = find_checkpoint(reference)
        config = EngineConfig(reference, device="cpu", sizes=sizes, batch_sizes=tuple(batch_sizes))
        shape = _load(replace(checkpoint, redirect=unread), config, "bf16")
        listed = tuple(shape.card.sizes.listed)
        return cls(checkpoint, fingerprint(checkpoint), listed, config, shape)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every padded prompt length."""
        return self.shape.tokenizer.buckets

    def stages(self) -> list[Stage]:
        """The stages without weights: their names and shapes."""
        return list(export_stages(self.shape, self.sizes))

    def load(self, precision: str, folder: Path) -> Model:
        """Load the model on the CPU, its weights mapped to files in ``folder``.

        Args:
            precision: ``fp8`` is loaded as bf16, as its weights become fp8 in the graph.
            folder: a new one is made.

        Raises:
            CheckpointError: a file is damaged, or the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return _load(replace(self.checkpoint, redirect=mapped(folder)), self.config, precision)


def _load(checkpoint: Checkpoint, config: EngineConfig, precision: str) -> Model:
    placement = Placement(torch.device("cpu"), "bf16" if precision == "fp8" else precision)
    return find_family(checkpoint).load(checkpoint, config, placement, lambda _stage, _fraction: None)
