"""What tensors of a LoRA file are called: PEFT's, diffusers', ComfyUI's and kohya's ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted

_ROLES = (
    ("down", re.compile(r"(?P<module>.+)\.(lora_A|lora_down|lora\.down)(\.[A-Za-z0-9_-]+)?\.weight")),
    ("up", re.compile(r"(?P<module>.+)\.(lora_B|lora_up|lora\.up)(\.[A-Za-z0-9_-]+)?\.weight")),
    ("alpha", re.compile(r"(?P<module>.+)\.alpha")),
)
_PREFIXES = ("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.", "unet.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")


@dataclass(slots=True)
class Keys:
    """The keys of one adapted module, as they stand in the file."""

    down: str = ""
    up: str = ""
    alpha: str = ""


def group_keys(path: Path, keys: Iterable[str]) -> dict[str, Keys]:
    """Sort a file's keys by the module they adapt, without prefixes of whole files.

    Raises:
        CheckpointError: a key is of no LoRA, or half of a pair is missing.
    """
    modules: dict[str, Keys] = {}
    for key in sorted(keys):
        module, role = _take_apart(path, key)
        setattr(modules.setdefault(module, Keys()), role, key)
    for found in modules.values():
        if not (found.down and found.up):
            lacking = "up (B)" if found.down else "down (A)"
            key = found.down or found.up or found.alpha
            raise CheckpointError(
                f"{quoted(path)} has {key!r} but not the {lacking} matrix beside it: fetch the adapter again."
            )
    return modules


def find_module(module: str, known: Mapping[str, str]) -> str:
    """The dotted name of a module; kohya's files have underscores in the place of dots.

    Args:
        module: as the file has it.
        known: dotted names by their form with underscores.
    """
    for prefix in _FLAT_PREFIXES:
        if module.startswith(prefix):
            flat = module.removeprefix(prefix)
            return known.get(flat, flat)
    return module


def flat_names(modules: Iterable[str]) -> dict[str, str]:
    """Dotted names by their form with underscores, fused projections included."""
    names = list(modules)
    fused = [name.removesuffix("to_q") + "qkv" for name in names if name.endswith(".to_q")]
    outs = [name.removesuffix("to_out.0") + "out" for name in names if name.endswith(".to_out.0")]
    return {name.replace(".", "_"): name for name in (*fused, *outs, *names)}


def _take_apart(path: Path, key: str) -> tuple[str, str]:
    for role, pattern in _ROLES:
        if match := pattern.fullmatch(key):
            module = match["module"]
            for prefix in _PREFIXES:
                module = module.removeprefix(prefix)
            return module, role
    raise CheckpointError(
        f"{quoted(path)} has {key!r}, which belongs to no plain LoRA: only pairs of lora_A and lora_B (or "
        "lora_down and lora_up) with an alpha can be read."
    )
