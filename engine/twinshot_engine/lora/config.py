"""What is said of a LoRA's alphas: in PEFT's file beside it, or in its own header, as diffusers does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted, read_json

_FILE = "adapter_config.json"
_METADATA = "lora_adapter_metadata"
_PART = "transformer."


class LoraConfig(NamedTuple):
    """PEFT's fields that decide how strong an update is."""

    lora_alpha: float | None
    alpha_pattern: Mapping[str, float]
    use_rslora: bool

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """Alpha over rank, or over its root (arXiv 2312.03732).

        Args:
            module: the dotted name of what is adapted.
            rank: of its update.
            alpha: as stored beside the update, which comes first, or None. What nobody tells is the rank.
        """
        if alpha is None:
            alpha = self._pattern(module) or self.lora_alpha or rank
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _pattern(self, module: str) -> float | None:
        """PEFT's rule: the first pattern that the module's name ends with."""
        matches = (re.fullmatch(rf"(.*\.)?({key})", module) for key in self.alpha_pattern)
        found = (value for match, value in zip(matches, self.alpha_pattern.values(), strict=True) if match)
        return next(found, None)


def read_config(path: Path) -> LoraConfig:
    """Read what is said of the file at ``path``.

    Raises:
        CheckpointError: it is damaged, or asks for more than a plain LoRA.
    """
    beside = path.with_name(_FILE)
    fields = read_json(beside) if beside.is_file() else _read_header(path)
    if fields.get("use_dora"):
        raise CheckpointError(f"{quoted(path)} is a DoRA (use_dora), which cannot be read: a plain LoRA can.")
    try:
        alpha = fields.get("lora_alpha")
        pattern = {str(key): _finite(value) for key, value in (fields.get("alpha_pattern") or {}).items()}
        config = LoraConfig(alpha and _finite(alpha), pattern, bool(fields.get("use_rslora")))
        config.scale("", 1, None)  # so that patterns that are none are found here
    except (AttributeError, TypeError, ValueError, re.error) as error:
        where = beside if beside.is_file() else path
        raise CheckpointError(f"{quoted(where)} has alphas that cannot be read: {error}.") from error
    return config


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{number} is not finite")
    return number


def _read_header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_METADATA, "{}")
    try:
        return {str(key).removeprefix(_PART): value for key, value in dict(json.loads(text)).items()}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{quoted(path)} has unreadable {_METADATA} in its header.") from error
