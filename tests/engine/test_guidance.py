"""Guidance: two passes a step, as the pipelines of diffusers take them, negative prompts and all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_sana
import tiny_sd3
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from qwen_image_checkpoint import write_checkpoint
from torch import Tensor

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.schedule import Steps
from twinshot_engine.types import GenerateRequest

STEPS = 5
TIMES = [1 - (1 - (1 - (i / STEPS) ** 1.17) ** 0.8) ** 1.1 for i in range(STEPS)]
REQUEST = GenerateRequest("a photo of a red apple", seed=11, steps=STEPS, width=288, height=256)


class Guided(NamedTuple):
    """How a family's pipeline is asked for guidance.

    Attributes:
        pipeline: its class.
        options: of its call, by the guidance that ours is asked for.
    """

    pipeline: type[DiffusionPipeline]
    options: Callable[[float], dict[str, Any]]


FAMILIES = {
    "z-image": Guided(ZImagePipeline, lambda guidance: {"guidance_scale": guidance - 1}),
    "sana": Guided(
        SanaPipeline, lambda guidance: {"guidance_scale": guidance, "use_resolution_binning": False}
    ),
    "sd3.5": Guided(StableDiffusion3Pipeline, lambda guidance: {"guidance_scale": guidance}),
    "qwen-image": Guided(
        QwenImagePipeline, lambda guidance: {"true_cfg_scale": guidance, "negative_prompt": " "}
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("guided")
    if family == "sana":
        tiny_sana.write(folder, tiny_sana.TRANSFORMER, sprint=False)
    elif family == "sd3.5":
        tiny_sd3.write_checkpoint(folder, second=False)
    elif family == "qwen-image":
        write_checkpoint(folder, request.getfixturevalue("tokenizer"), second=False)
    else:
        folder = request.getfixturevalue("tiny")
    return folder


def load(folder: Path) -> Engine:
    return Engine.load(EngineConfig(str(folder), device="cpu", steps=(1, Steps(STEPS, "multi"))))


@pytest.fixture(scope="module")
def served(tiny: Path) -> Engine:
    return load(tiny)


@pytest.fixture(scope="module")
def guided_engine(folder: Path) -> Engine:
    return load(folder)


@pytest.fixture(scope="module")
def stock(family: str, folder: Path) -> DiffusionPipeline:
    """A pipeline that takes Euler's steps along the times it is given."""
    pipeline = FAMILIES[family].pipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline.set_progress_bar_config(disable=True)
    if family == "sana":
        pipeline.text_encoder.set_attn_implementation("eager")  # the only one that caps scores
    return pipeline


def draw(stock: DiffusionPipeline, **options: Any) -> Tensor:
    """The pipeline's last latents ``[1, C, h, w]``."""
    latents: Tensor = stock(
        REQUEST.prompt,
        width=REQUEST.width,
        height=REQUEST.height,
        num_inference_steps=STEPS,
        sigmas=TIMES,
        generator=torch.Generator().manual_seed(REQUEST.seed),
        output_type="latent",
        **options,
    ).images
    if latents.dim() == 3:  # [1, tokens, patches' channels]
        latents = QwenImagePipeline._unpack_latents(latents, REQUEST.height, REQUEST.width, 8)[:, :, 0]
    return latents


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("guidance", [1.0, 1.5, 7.0])
def test_guidance_is_the_pipelines(
    family: str, guided_engine: Engine, stock: DiffusionPipeline, guidance: float
) -> None:
    expected = draw(stock, **FAMILIES[family].options(guidance))
    result = guided_engine.latents([replace(REQUEST, guidance=guidance)])
    assert far(result, expected) < 5e-5


def test_guided_pictures_do_not_depend_on_neighbours(guided_engine: Engine) -> None:
    requests = [
        replace(REQUEST, guidance=4.0),
        replace(REQUEST, guidance=4.0, prompt="two vases " * 20, seed=1),
    ]
    together = guided_engine.latents(requests)
    alone = torch.cat([guided_engine.latents([request]) for request in requests])
    assert far(together, alone) < 1e-5


def test_guidance_is_refused_where_it_was_distilled_into_the_weights(served: Engine) -> None:
    served.validate(replace(REQUEST, guidance=3.0))
    served.validate(replace(REQUEST, steps=1))
    message = "The guidance 3.5 is not supported at 1 steps, only by multi-step schedules: 5 of those"
    with pytest.raises(InvalidRequestError, match=message):
        served.validate(replace(REQUEST, steps=1, guidance=3.5))


def test_a_batch_has_one_guidance(served: Engine) -> None:
    with pytest.raises(ValueError, match="shares one width, height, step count, guidance and adapter"):
        served.generate([REQUEST, replace(REQUEST, guidance=2.0)])


def test_a_count_has_one_schedule() -> None:
    with pytest.raises(ValueError, match="steps 4, 4 name a count twice"):
        EngineConfig(steps=(4, Steps(4, "any")))
