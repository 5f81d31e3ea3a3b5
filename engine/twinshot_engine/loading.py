"""What surrounds a family's loading: settings of the process, cleaning up after failures, a description."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.families import Model
from twinshot_engine.types import EngineInfo


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Let go of whatever was loaded before an error: its frames would hold it for as long as it is kept."""
    try:
        yield
    except BaseException as error:
        failed: BaseException | None = error
        while failed is not None:
            traceback.clear_frames(failed.__traceback__)
            failed = failed.__cause__ or failed.__context__
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where no GPU was used
        raise


def set_number_formats(placement: Placement) -> None:
    """Set what torch keeps for the whole process: exact fp32 as the reference, and tuned convolutions."""
    if placement.device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = placement.precision != "fp32"
        torch.backends.cudnn.benchmark = placement.backend == "fused"


def describe(checkpoint: Checkpoint, model: Model, config: EngineConfig, seconds: float) -> EngineInfo:
    """Tell what was loaded."""
    return EngineInfo(
        name=model.card.name,
        family=checkpoint.family,
        checkpoint=checkpoint.reference,
        revision=checkpoint.revision,
        device=str(model.placement.device),
        precision=model.placement.precision,
        text_precision=model.placement.text_precision,
        backend=model.placement.backend,
        torch_version=str(torch.__version__),
        parameters=model.count_parameters(),
        sizes=model.card.sizes.listed,
        size_rule=str(model.card.sizes),
        steps=tuple(int(count) for count in config.steps),
        max_prompt_tokens=model.tokenizer.max_tokens,
        load_seconds=seconds,
        description=model.card.description,
        guided_steps=tuple(
            int(count)
            for count in config.steps
            if all(constants.takes_guidance for constants in model.passes[count])
        ),
        vocabulary=model.card.vocabulary,
        near=model.card.near,
        examples=model.card.examples,
    )
