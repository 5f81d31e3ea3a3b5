"""A checkpoint folder means the same to this engine and to stock diffusers.

With TwinFlow's second time embedder, which diffusers does not know, the reference is diffusers' network
inside a sampler written here from the published description.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

PROMPTS = ["a photo of a red apple", "two blue vases " * 13]


@pytest.fixture(scope="module")
def stock(folder: Path) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def served(folder: Path) -> Engine:
    return Engine.load(EngineConfig(str(folder), device="cpu", steps=(1, 2, 3, 4, len(MULTI))))


def draw(pipeline: ZImagePipeline, prompt: str, output: str) -> Tensor | np.ndarray:
    """One step of the stock pipeline."""
    generator = torch.Generator("cpu").manual_seed(11)
    options = {"width": 256, "height": 256, "num_inference_steps": 1, "guidance_scale": 0.0}
    images = pipeline(prompt, generator=generator, output_type=output, **options).images
    return images if output == "latent" else images[0]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "long"])
def test_one_step_is_the_same_picture(stock: ZImagePipeline, served: Engine, prompt: str) -> None:
    request = GenerateRequest(prompt, seed=11)
    expected = draw(stock, prompt, "latent")
    assert (served.latents([request]) - expected).abs().max() / expected.abs().max() < 1e-5
    difference = served.generate([request]).images[0].astype(int) - np.asarray(
        draw(stock, prompt, "pil")
    ).astype(int)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


class FixedTime(nn.Module):
    """Stands in for the network's time embedder."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, _time: Tensor) -> Tensor:
        return self.embedding


def embed(embedder: nn.Module, time: float) -> Tensor:
    return embedder(torch.tensor([time], dtype=torch.float64))


def model_time(t: float) -> float:
    return 1 - t if t > 0 else 0.0


class Reference:
    """TwinFlow's sampler around diffusers' network, for one image."""

    def __init__(self, pipeline: ZImagePipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self.network = pipeline.transformer
        self.first = self.network.t_embedder
        self.second = type(self.first)(
            self.first.mlp[2].out_features, mid_size=self.first.mlp[0].out_features
        )
        stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        prefix = "t_embedder_2."
        self.second.load_state_dict(
            {k.removeprefix(prefix): w.float() for k, w in stored.items() if prefix in k}
        )

    @torch.no_grad()
    def latents(self, prompt: str, t: list[float], target: list[float], *, renoise: bool) -> Tensor:
        text = self.pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0]
        generator = torch.Generator("cpu").manual_seed(11)
        shape = (1, self.network.config.in_channels, 32, 32)
        x = torch.randn(shape, generator=generator).double()
        for i, now in enumerate(t):
            velocity = self._velocity(x, now, target[i], text)
            data, noise = x - now * velocity, x + (1 - now) * velocity
            after = t[i + 1] if i + 1 < len(t) else 0.0
            if after and renoise:
                noise = torch.randn(shape, generator=generator).double()
            x = (1 - after) * data + after * noise
        return data

    def _velocity(self, x: Tensor, t: float, target: float, text: list[Tensor]) -> Tensor:
        now, then = model_time(t), model_time(target)
        gap = embed(self.second, (then - now) * 1000) * abs(then - now)
        self.network.t_embedder = FixedTime(embed(self.first, now * 1000) + gap)
        try:
            prediction = self.network([x[0].float()[:, None]], torch.zeros(1), text, return_dict=False)[0]
        finally:
            self.network.t_embedder = self.first
        return -prediction[0][:, 0].double()[None]


FEW = {1: [1.0], 2: [1.0, 0.6], 4: [1.0, 1 - 0.5 / 3, 1 - 1 / 3, 0.5]}
MULTI = [1 - (1 - (1 - (i / 16) ** 1.17) ** 0.8) ** 1.1 for i in range(16)]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "long"])
def test_few_steps_follow_the_published_sampler(
    stock: ZImagePipeline, served: Engine, folder: Path, prompt: str, steps: int
) -> None:
    expected = Reference(stock, folder).latents(prompt, FEW[steps], [0.0] * steps, renoise=True)
    result = served.latents([GenerateRequest(prompt, seed=11, steps=steps)])
    assert (result - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("t", "target"), [([1.0, 0.75, 0.5], [0.75, 0.5, 0.0]), (MULTI, MULTI)], ids=["any", "multi"]
)
def test_more_steps_follow_the_published_sampler(
    stock: ZImagePipeline, served: Engine, folder: Path, t: list[float], target: list[float]
) -> None:
    expected = Reference(stock, folder).latents(PROMPTS[0], t, target, renoise=False)
    result = served.latents([GenerateRequest(PROMPTS[0], seed=11, steps=len(t))])
    assert (result - expected).abs().max() / expected.abs().max() < 1e-4


@torch.no_grad()
def test_the_second_embedder_matters_after_the_first_step(
    stock: ZImagePipeline, served: Engine, folder: Path
) -> None:
    reference = Reference(stock, folder)
    torch.nn.init.zeros_(reference.second.mlp[2].weight)
    torch.nn.init.zeros_(reference.second.mlp[2].bias)
    without = reference.latents(PROMPTS[0], FEW[2], [0.0, 0.0], renoise=True)
    result = served.latents([GenerateRequest(PROMPTS[0], seed=11, steps=2)])
    assert (result - without).abs().max() / without.abs().max() > 1e-3
