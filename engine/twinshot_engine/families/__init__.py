"""The checkpoint families that can be served, by the pipeline class in ``model_index.json``."""

from collections.abc import Mapping

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.model import FamilyLoader, FamilyPlanner, Model, Plan
from twinshot_engine.families.z_image import load_z_image, plan_z_image

__all__ = ["FAMILIES", "FamilyLoader", "Model", "Plan", "find_family", "plan"]

FAMILIES: Mapping[str, FamilyLoader] = {"ZImagePipeline": load_z_image}
_PLANNERS: Mapping[str, FamilyPlanner] = {"ZImagePipeline": plan_z_image}


def find_family(checkpoint: Checkpoint) -> FamilyLoader:
    """Choose the loader for a checkpoint.

    Raises:
        CheckpointError: its family is not supported, or it does not say.
    """
    if checkpoint.family not in FAMILIES:
        raise CheckpointError(
            f"'{checkpoint.folder}' is a {checkpoint.family!r}, which is not supported: "
            f"{', '.join(FAMILIES)} is."
        )
    return FAMILIES[checkpoint.family]


def plan(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
    """Tell what loading a checkpoint would take, without reading a weight.

    Raises:
        CheckpointError: its family is not supported, it is damaged, or its parts do not fit together.
        ValueError: its weights cannot have the precision of ``placement``.
    """
    find_family(checkpoint)
    return _PLANNERS[checkpoint.family](checkpoint, config, placement)
