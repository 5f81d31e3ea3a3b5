"""The families that can be trained, by the pipeline class in `model_index.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from twinshot_distill.errors import TrainingError
from twinshot_distill.families.base import Family
from twinshot_engine.checkpoint import Checkpoint

__all__ = ["FAMILIES", "Family", "find_family"]


def _in(module: str) -> Family:
    # diffusers takes seconds to import and is only needed for its own families.
    family: Family = import_module(f"twinshot_distill.families.{module}").FAMILY
    return family


FAMILIES: Mapping[str, Callable[[], Family]] = {
    "ZImagePipeline": lambda: _in("z_image"),
    "QwenImagePipeline": lambda: _in("qwen_image"),
    "SanaPipeline": lambda: _in("sana"),
    "StableDiffusion3Pipeline": lambda: _in("stable_diffusion_3"),
}


def find_family(checkpoint: Checkpoint) -> Family:
    """Choose the family of a checkpoint.

    Raises:
        TrainingError: it cannot be trained, or diffusers is needed and not installed.
    """
    if checkpoint.family not in FAMILIES:
        raise TrainingError(
            f"'{checkpoint.folder}' is a {checkpoint.family!r}, which cannot be trained: "
            f"{', '.join(FAMILIES)} can."
        )
    try:
        return FAMILIES[checkpoint.family]()
    except ImportError as error:
        raise TrainingError(
            f"{checkpoint.family} is trained with diffusers, which is not installed ({error}): "
            "pip install 'twinshot-server[train]'."
        ) from error
