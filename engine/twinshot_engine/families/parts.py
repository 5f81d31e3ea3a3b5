"""From checked headers to loaded modules: what loading any family has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from twinshot_engine.card import Card, read_card
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.model import Progress
from twinshot_engine.memory import weight_bytes
from twinshot_engine.weights import Slot, StoredPart


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model before it is loaded.

    Attributes:
        name: for people and progress bars.
        module: on the meta device, with the types its weights shall have.
        stored: where its weights are.
        slots: from stored names to the module's parameters.
    """

    name: str
    module: nn.Module
    stored: StoredPart
    slots: Mapping[str, Slot]

    def check(self) -> None:
        """Compare headers and module; see :meth:`~twinshot_engine.weights.StoredPart.check`."""
        self.stored.check(self.module, self.slots)


def check_parts(parts: Iterable[Part]) -> None:
    """Compare headers and module of each part; raises one CheckpointError of all faults."""
    faults: list[object] = []
    for part in parts:
        try:
            part.check()
        except CheckpointError as error:
            faults += error.args
    if faults:
        raise CheckpointError(*faults)


def modules_of(parts: Iterable[Part]) -> list[nn.Module]:
    """The modules alone, in order."""
    return [part.module for part in parts]


def part_bytes(parts: Iterable[Part], device: torch.device) -> dict[str, int]:
    """Bytes of each part's weights as they would be loaded on ``device``."""
    return {part.name: weight_bytes([part.module], device) for part in parts}


def fill_parts(parts: Sequence[Part], device: torch.device, progress: Progress) -> None:
    """Read the weights of checked parts one after another.

    Raises:
        CheckpointError: a file turns out to be damaged.
    """
    sizes = list(part_bytes(parts, device).values())
    ends = [sum(sizes[: i + 1]) / sum(sizes) for i in range(len(sizes))]
    for part, start, end in zip(parts, [0.0, *ends[:-1]], ends, strict=True):
        progress(part.name, start)
        span = partial(_report_within, progress, part.name, start, end)
        part.stored.fill(part.module, part.slots, device, span)


def advertised_card(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, *, multiple: int, longest_side: int
) -> Card:
    """Read the card, with the sizes that the config asks for; see :func:`~twinshot_engine.card.read_card`."""
    card = read_card(checkpoint, multiple=multiple, longest_side=longest_side)
    if config.sizes is not None:
        return card.advertise(config.sizes)
    # What is captured must be listed.
    return card.advertise(card.sizes.listed) if placement.backend == "fused" else card


def check_channels(checkpoint: Checkpoint, maker: str, made: int, reader: str, read: int) -> None:
    """Raise CheckpointError unless what one part makes is what the next one reads."""
    if made != read:
        raise CheckpointError(
            f"In '{checkpoint.folder}' the {maker} makes {made} channels, but the {reader} reads {read}."
        )


def _report_within(progress: Progress, name: str, start: float, end: float, done: float) -> None:
    progress(name, min(start + done * (end - start), end))
