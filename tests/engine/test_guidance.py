"""Guidance: two passes a step, against the same sum taken over velocities in a sampler written here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.schedule import Steps
from twinshot_engine.types import GenerateRequest

STEPS = 5
TIMES = [1 - (1 - (1 - (i / STEPS) ** 1.17) ** 0.8) ** 1.1 for i in range(STEPS)]
REQUEST = GenerateRequest("a photo of a red apple", seed=11, steps=STEPS)


@pytest.fixture(scope="module")
def served(tiny: Path) -> Engine:
    return Engine.load(EngineConfig(str(tiny), device="cpu", steps=(1, Steps(STEPS, "multi"))))


@pytest.fixture(scope="module")
def stock(tiny: Path) -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(tiny, dtype=torch.float32)


@torch.no_grad()
def guided(stock: ZImagePipeline, guidance: float) -> Tensor:
    """Diffusers' network with and without the prompt.

    Where a pass aims at its own time, TwinFlow's second embedder has no share.
    """
    captions = [
        stock.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0]
        for prompt in (REQUEST.prompt, "")
    ]
    x = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(REQUEST.seed))
    for now, after in zip(TIMES, [*TIMES[1:], 0.0], strict=True):
        time = torch.tensor([1 - now])
        with_it, without = (
            -stock.transformer([x[0][:, None]], time, caption, return_dict=False)[0][0][:, 0]
            for caption in captions
        )
        x = x + (after - now) * (without + guidance * (with_it - without))
    return x


@pytest.mark.parametrize("guidance", [1.0, 1.5, 7.0])
def test_guidance_combines_velocities(served: Engine, stock: ZImagePipeline, guidance: float) -> None:
    expected = guided(stock, guidance)
    result = served.latents([replace(REQUEST, guidance=guidance)])
    assert (result - expected).abs().max() / expected.abs().max() < 1e-4


def test_guided_pictures_do_not_depend_on_neighbours(served: Engine) -> None:
    requests = [
        replace(REQUEST, guidance=4.0),
        replace(REQUEST, guidance=4.0, prompt="two vases " * 20, seed=1),
    ]
    together = served.latents(requests)
    alone = torch.cat([served.latents([request]) for request in requests])
    assert (together - alone).abs().max() / alone.abs().max() < 1e-5


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
