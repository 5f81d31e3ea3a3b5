"""Read a LoRA file and hold it against the transformer it is to adapt."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted, read_json
from twinshot_engine.lora.keys import Keys, find_module, flat_names, group_keys
from twinshot_engine.lora.low_rank import LowRank
from twinshot_engine.tensor_files import Header, opened, read_headers

Headers = Mapping[str, Header]
_CONFIG = "adapter_config.json"
_METADATA = "lora_adapter_metadata"  # diffusers' key in the file's own header
_PART = "transformer."


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA's updates by the names of the stored weights that they change."""

    path: Path
    updates: Mapping[str, LowRank]

    @property
    def rank(self) -> int:
        """The largest of its updates."""
        return max(update.down.shape[0] for update in self.updates.values())


def find_lora(source: AdapterSource, stored: Headers, translate: Callable[[Headers], Headers]) -> Lora:
    """Find and read an adapter.

    Args:
        source: where it is, and its strength.
        stored: the transformer's tensors.
        translate: from other names of the family's tensors to those.

    Raises:
        CheckpointError: it cannot be found or read, or does not fit the transformer; then the key is named.
    """
    path = source.find()
    headers = {header.key: header for header in read_headers(path)}
    modules = group_keys(path, headers)
    if not modules:
        raise CheckpointError(f"{quoted(path)} holds no LoRA.")
    config = _read_config(path)
    flat = flat_names(name.removesuffix(".weight") for name in stored)
    updates: dict[str, LowRank] = {}
    with opened(path, torch.device("cpu")) as read:
        for module, keys in modules.items():
            name = find_module(module, flat)
            _check_pair(path, headers, keys)
            alpha = float(read(headers[keys.alpha])) if keys.alpha else None
            down, up = (read(headers[key]).clone() for key in (keys.down, keys.up))
            scale = source.scale * _scale(config, name, down.shape[0], alpha)
            for weight, rows in _targets(path, name, headers[keys.up], keys, stored, translate):
                update = LowRank(down, up if rows is None else up[rows], scale)
                _check_fit(path, keys, update, weight, stored[weight])
                updates[weight] = update
    return Lora(path, updates)


def _read_config(path: Path) -> Mapping[str, Any]:
    """What PEFT's file beside it, or diffusers' entry in its header, says of rank and alpha.

    Raises:
        CheckpointError: it is damaged, or asks for more than a plain LoRA.
    """
    if (beside := path.with_name(_CONFIG)).is_file():
        config = read_json(beside)
    else:
        with safe_open(path, framework="pt") as file:
            config = _parse_metadata(path, (file.metadata() or {}).get(_METADATA, "{}"))
    if config.get("use_dora"):
        raise CheckpointError(f"{quoted(path)} is a DoRA (use_dora), which cannot be read: a plain LoRA can.")
    return config


def _parse_metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        return {str(key).removeprefix(_PART): value for key, value in dict(json.loads(text)).items()}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{quoted(path)} has unreadable {_METADATA} in its header.") from error


def _scale(config: Mapping[str, Any], name: str, rank: int, alpha: float | None) -> float:
    """Alpha over rank; 1 where neither the file nor its config tells alpha."""
    if alpha is None:
        alpha = float(
            _from_pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha") or rank)
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _from_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that the module's name ends with."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _check_pair(path: Path, headers: Headers, keys: Keys) -> None:
    down, up = headers[keys.down], headers[keys.up]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{quoted(path)} has {keys.down!r} of {list(down.shape)} and {keys.up!r} of {list(up.shape)}, "
            "which share no rank: they must be [rank, in] and [out, rank]."
        )


def _targets(
    path: Path,
    name: str,
    up: Header,
    keys: Keys,
    stored: Headers,
    translate: Callable[[Headers], Headers],
) -> list[tuple[str, slice | None]]:
    """The stored weights that a module's update changes, each with its rows of the up matrix."""
    weight = f"{name}.weight"
    if weight in stored:
        return [(weight, None)]
    found = [(part, header.rows) for part, header in translate({weight: up}).items()]
    if not found or any(part not in stored for part, _ in found):
        raise CheckpointError(
            f"{quoted(path)} has {keys.up!r}, but this transformer has no {weight!r} to adapt: the adapter "
            "was made for another family."
        )
    return found


def _check_fit(path: Path, keys: Keys, update: LowRank, weight: str, header: Header) -> None:
    shape = update.up.shape[0], update.down.shape[1]
    if header.shape != shape:
        raise CheckpointError(
            f"{quoted(path)} has an update of {list(shape)} in {keys.up!r} and {keys.down!r}, but {weight!r} "
            f"is {list(header.shape)}: the adapter was made for another model."
        )
