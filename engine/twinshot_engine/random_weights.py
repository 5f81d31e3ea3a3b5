"""Checkpoints of the published sizes with random weights: speed and memory without a download.

They load by the same code as any other checkpoint; only their tensors come from no file. Pictures are
noise; never judge quality by them. The same name gives the same weights everywhere on one kind of device.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinshot_engine.checkpoint import BUILTIN_FOLDER, Checkpoint
from twinshot_engine.config import BUILTIN
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families import find_family
from twinshot_engine.tensor_files import Header
from twinshot_engine.weights import StoredPart

PREFIX = "random:"
"""What a reference to one of :data:`PUBLISHED` begins with."""

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "published").iterdir())
}
"""Configs of published checkpoints by name: ``model_index.json``, and each part's ``config.json``."""

_LONGEST_PROMPT = 32768
_UNIT = ("embed_tokens", "pad_token", "pos_embed.pos_embed")
_SMALL = "SelfAttention.q.weight"


@dataclass(frozen=True)
class RandomPart(StoredPart):
    """A part whose tensors are drawn when they are read."""

    def read_stored(self, names: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Draw tensors, in bf16 as checkpoints store them."""
        for name in names:
            yield name, draw(name, self.headers[name].shape, device)


@dataclass(frozen=True, slots=True)
class RandomCheckpoint(Checkpoint):
    """A checkpoint of some configs; its tokenizer is the built-in checkpoint's."""

    configs: Mapping[str, Mapping[str, Any]] | None = None

    def read_json(self, *path: str) -> dict[str, Any]:
        """Return one of the configs.

        Raises:
            CheckpointError: there is no such file.
        """
        config = (self.configs or {}).get(path[0])
        if config is None:
            raise CheckpointError(f"{self.reference!r} has no {'/'.join(path)}.")
        return dict(config)

    @property
    def name(self) -> str:
        """The reference itself."""
        return self.reference

    def tokenizer(self, name: str = "tokenizer", *, chat: bool = True) -> Any:  # noqa: ARG002
        """The built-in checkpoint's tokenizer, without its limit."""
        tokenizer = Checkpoint(BUILTIN_FOLDER, BUILTIN).tokenizer()
        tokenizer.model_max_length = _LONGEST_PROMPT
        return tokenizer

    def has(self, *path: str) -> bool:
        """Whether there is such a config."""
        return path[0] in (self.configs or {})

    def find_part(self, name: str) -> StoredPart:
        """Name the tensors that such a checkpoint stores."""
        with torch.device("meta"):
            module = find_family(self).open_forms[name](self.read_json(name))
        headers = {
            key: Header(Path(name), key, tuple(parameter.shape), "BF16")
            for key, parameter in module.named_parameters()
        }
        return RandomPart(Path(self.reference, name), headers)


def find_random(reference: str) -> RandomCheckpoint:
    """Find a checkpoint of published size by ``random:<name>``.

    Raises:
        CheckpointError: there is none of that name.
    """
    name = reference.removeprefix(PREFIX)
    if name not in PUBLISHED:
        raise CheckpointError(
            f"There is no {reference!r}, but {', '.join(PREFIX + key for key in PUBLISHED)}."
        )
    return RandomCheckpoint(BUILTIN_FOLDER, reference, configs=PUBLISHED[name])


def draw(name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw a parameter by its name and shape, so scaled that activations keep their size: bf16.

    Norms' scales are about 1 and biases small; gates come out anywhere between -1 and 1. T5 does not scale
    its scores, so its queries are small, as they are in trained ones.
    """
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    if name.endswith("bias"):
        return noise * 0.02
    if len(shape) == 1 or name.endswith("gamma"):
        return 1 + noise * 0.1
    if any(part in name for part in _UNIT):
        return noise
    fan_in = torch.Size(shape[1:]).numel()
    return noise / math.sqrt(fan_in) / (8 if name.endswith(_SMALL) else 1)
