"""A Stable Diffusion 3.5 folder means the same to this engine and to stock diffusers.

With TwinFlow's second embedder, which diffusers does not know, the reference is diffusers' network inside a
sampler written here from the published description.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from tiny_sd3 import LATENT_CHANNELS, write_checkpoint
from torch import Tensor, nn

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

PROMPTS = ["a photo of a red apple", "two blue vases " * 9]
SIZE = (288, 256)


@pytest.fixture(scope="module", params=["twinflow", "plain", "without T5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_checkpoint(folder, second=request.param == "twinflow", with_t5=request.param != "without T5")
    return folder


@pytest.fixture(scope="module")
def stock(folder: Path) -> StableDiffusion3Pipeline:
    absent = {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def served(folder: Path) -> Engine:
    return Engine.load(EngineConfig(str(folder), device="cpu", steps=(1, 2, 3, 4, 16)))


def prompts_of(folder: Path) -> list[str]:
    # Without T5 nothing reads beyond CLIP's few tokens, and such prompts are refused.
    return PROMPTS if (folder / "text_encoder_3").is_dir() else PROMPTS[:1]


class Embedding(nn.Module):
    """Stands in for the network's time and text embedder."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _time: Tensor, _pooled: Tensor) -> Tensor:
        return self.value


class Reference:
    """TwinFlow's sampler around diffusers' network, for one image."""

    def __init__(self, pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
        self.pipeline, self.network = pipeline, pipeline.transformer
        self.first, self.second = self.network.time_text_embed, None
        stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        prefix = "time_text_embed_2."
        weights = {key.removeprefix(prefix): w for key, w in stored.items() if key.startswith(prefix)}
        if weights:
            config = self.network.config
            self.second = type(self.first)(
                embedding_dim=self.network.inner_dim, pooled_projection_dim=config.pooled_projection_dim
            )
            self.second.load_state_dict(weights)

    @torch.no_grad()
    def latents(self, prompt: str, t: list[float], target: list[float], *, renoise: bool) -> Tensor:
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, None, device="cpu", do_classifier_free_guidance=False
        )
        generator = torch.Generator("cpu").manual_seed(11)
        shape = (1, LATENT_CHANNELS, SIZE[1] // 8, SIZE[0] // 8)
        x = torch.randn(shape, generator=generator).double()
        for i, now in enumerate(t):
            velocity = self._velocity(x, now, target[i], embeddings, pooled)
            data, noise = x - now * velocity, x + (1 - now) * velocity
            after = t[i + 1] if i + 1 < len(t) else 0.0
            if after and renoise:
                noise = torch.randn(shape, generator=generator).double()
            x = (1 - after) * data + after * noise
        return data

    def _velocity(self, x: Tensor, t: float, target: float, embeddings: Tensor, pooled: Tensor) -> Tensor:
        if self.second is None and target != t:  # one time was trained, by LoRAs with this one
            t, target = t - target / 2, 0.0
        now, then = torch.tensor([t * 1000]), torch.tensor([target * 1000])
        value = self.first(now, pooled)
        if self.second is not None:
            value = value + self.second(then, pooled) * (now - then)[:, None] / 1000
        self.network.time_text_embed = Embedding(value)
        try:
            prediction = self.network(x.float(), embeddings, pooled, now, return_dict=False)[0]
        finally:
            self.network.time_text_embed = self.first
        return prediction.double()


def served_latents(engine: Engine, prompt: str, steps: int) -> Tensor:
    return engine.latents([GenerateRequest(prompt, seed=11, width=SIZE[0], height=SIZE[1], steps=steps)])


FEW = {1: [1.0], 2: [1.0, 0.6], 4: [1.0, 1 - 0.5 / 3, 1 - 1 / 3, 0.5]}
MULTI = [1 - (1 - (1 - (i / 16) ** 1.17) ** 0.8) ** 1.1 for i in range(16)]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_follow_the_published_sampler(
    stock: StableDiffusion3Pipeline, served: Engine, folder: Path, steps: int
) -> None:
    for prompt in prompts_of(folder):
        expected = Reference(stock, folder).latents(prompt, FEW[steps], [0.0] * steps, renoise=True)
        result = served_latents(served, prompt, steps)
        assert (result - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("t", "target"), [([1.0, 0.75, 0.5], [0.75, 0.5, 0.0]), (MULTI, MULTI)], ids=["any", "multi"]
)
def test_more_steps_follow_the_published_sampler(
    stock: StableDiffusion3Pipeline, served: Engine, folder: Path, t: list[float], target: list[float]
) -> None:
    expected = Reference(stock, folder).latents(PROMPTS[0], t, target, renoise=False)
    result = served_latents(served, PROMPTS[0], len(t))
    assert (result - expected).abs().max() / expected.abs().max() < 1e-4


def test_one_step_of_a_plain_checkpoint_is_the_pipelines_picture(
    stock: StableDiffusion3Pipeline, served: Engine, folder: Path
) -> None:
    if Reference(stock, folder).second is not None:
        pytest.skip("stock diffusers leaves TwinFlow's second embedder out")
    generator = torch.Generator("cpu").manual_seed(11)
    options = {"width": SIZE[0], "height": SIZE[1], "num_inference_steps": 1, "guidance_scale": 1.0}
    picture = stock(PROMPTS[0], generator=generator, **options).images[0]
    request = GenerateRequest(PROMPTS[0], seed=11, width=SIZE[0], height=SIZE[1])
    difference = served.generate([request]).images[0].astype(int) - np.asarray(picture).astype(int)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


def test_a_picture_does_not_depend_on_its_batch(served: Engine) -> None:
    requests = [
        GenerateRequest(prompt, seed=seed, width=SIZE[0], height=SIZE[1], steps=2)
        for seed, prompt in enumerate(["a red apple", "two blue vases", "a red vase"])
    ]
    together = served.latents(requests)
    for row, request in enumerate(requests):
        torch.testing.assert_close(together[row : row + 1], served.latents([request]), rtol=1e-4, atol=1e-4)
