"""The checkpoint families that can be served, by the pipeline class in ``model_index.json``."""

from collections.abc import Mapping

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.model import Family, Model, Plan
from twinshot_engine.families.qwen_image import QWEN_IMAGE
from twinshot_engine.families.sana import SANA, SANA_SPRINT
from twinshot_engine.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from twinshot_engine.families.z_image import Z_IMAGE

__all__ = ["FAMILIES", "Family", "Model", "Plan", "find_family", "plan"]

FAMILIES: Mapping[str, Family] = {
    "QwenImagePipeline": QWEN_IMAGE,
    "SanaPipeline": SANA,
    "SanaSprintPipeline": SANA_SPRINT,
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
    "ZImagePipeline": Z_IMAGE,
}


def find_family(checkpoint: Checkpoint) -> Family:
    """Choose the family of a checkpoint.

    Raises:
        CheckpointError: its family is not supported, or it does not say.
    """
    if checkpoint.family not in FAMILIES:
        raise CheckpointError(
            f"'{checkpoint.folder}' is a {checkpoint.family!r}, which is not supported; "
            f"supported: {', '.join(FAMILIES)}."
        )
    return FAMILIES[checkpoint.family]


def plan(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
    """Tell what loading a checkpoint would take, without reading a weight.

    Raises:
        CheckpointError: its family is not supported, it is damaged, or its parts do not fit together.
        ValueError: its weights cannot have the precision of ``placement``.
    """
    return find_family(checkpoint).plan(checkpoint, config, placement)
