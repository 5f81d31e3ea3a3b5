"""A Qwen-Image folder means the same to this engine and to stock diffusers.

With TwinFlow's second time embedder, which diffusers does not know, the reference is diffusers' network
inside a sampler written here from the published description.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from qwen_image_checkpoint import SECOND, make_second_embedder, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.qwen_image import QWEN_IMAGE
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.types import GenerateRequest

PROMPTS = ["a photo of a red apple", "two blue vases " * 13, "Ein Wort\nund noch eins, 猫"]
WIDTH, HEIGHT, SEED = 256, 272, 11
FEW = {1: [1.0], 2: [1.0, 0.6], 4: [1.0, 1 - 0.5 / 3, 1 - 1 / 3, 0.5]}
ANY = [1.0, 0.75, 0.5]


TWINFLOW = pytest.mark.parametrize("folder", [True], ids=["twinflow"], indirect=True)
PLAIN = pytest.mark.parametrize("folder", [False], ids=["plain"], indirect=True)
"""A checkpoint that stock diffusers understands whole."""


@pytest.fixture(scope="module", params=[True, False], ids=["twinflow", "plain"])
def folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    path = tmp_path_factory.mktemp("qwen-image")
    write_checkpoint(path, tokenizer, second=request.param)
    return path


@pytest.fixture(scope="module")
def stock(folder: Path) -> QwenImagePipeline:
    pipeline = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def served(folder: Path) -> Engine:
    return Engine.load(EngineConfig(str(folder), device="cpu", steps=(1, 2, 3, 4)))


def ask(prompt: str, steps: int = 1) -> GenerateRequest:
    return GenerateRequest(prompt, seed=SEED, steps=steps, width=WIDTH, height=HEIGHT)


def far(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


class Reference:
    """TwinFlow's sampler around diffusers' network, for one image."""

    def __init__(self, pipeline: QwenImagePipeline, folder: Path) -> None:
        self.pipeline, self.network = pipeline, pipeline.transformer
        stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        second = {name.removeprefix(SECOND): w for name, w in stored.items() if name.startswith(SECOND)}
        self.second = make_second_embedder() if second else None
        if self.second is not None:
            self.second.load_state_dict(second)

    @torch.no_grad()
    def latents(self, prompt: str, t: list[float], target: list[float], *, renoise: bool) -> Tensor:
        text, mask = self.pipeline.encode_prompt(prompt, device="cpu")
        assert mask is None
        generator = torch.Generator("cpu").manual_seed(SEED)
        shape = (1, self.network.config.out_channels, HEIGHT // 8, WIDTH // 8)
        x = torch.randn(shape, generator=generator).double()
        for i, now in enumerate(t):
            velocity = self._velocity(x, now, target[i], text)
            data, noise = x - now * velocity, x + (1 - now) * velocity
            after = t[i + 1] if i + 1 < len(t) else 0.0
            if after and renoise:
                noise = torch.randn(shape, generator=generator).double()
            x = (1 - after) * data + after * noise
        return data

    def _velocity(self, x: Tensor, t: float, target: float, text: Tensor) -> Tensor:
        def add(_module: Any, inputs: tuple[Any, ...], embedding: Tensor) -> Tensor:
            second = self.second(torch.tensor([target]), inputs[1])
            return embedding + second * (t - target)

        hooks = [self.network.time_text_embed.register_forward_hook(add)] if self.second else []
        packed = QwenImagePipeline._pack_latents(x.float(), 1, x.shape[1], *x.shape[2:])
        prediction = self.network(
            packed,
            text,
            None,
            # What has no second embedder was trained with one time, LoRAs with this one.
            torch.tensor([t if self.second or target == t else t - target / 2]),
            [[(1, x.shape[2] // 2, x.shape[3] // 2)]],
            return_dict=False,
        )[0]
        for hook in hooks:
            hook.remove()
        return QwenImagePipeline._unpack_latents(prediction, HEIGHT, WIDTH, 8)[:, :, 0].double()


@PLAIN
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "long", "foreign"])
def test_one_step_is_the_same_picture(stock: QwenImagePipeline, served: Engine, prompt: str) -> None:
    def draw(output: str) -> Any:
        generator = torch.Generator("cpu").manual_seed(SEED)
        options = {"num_inference_steps": 1, "true_cfg_scale": 1.0, "output_type": output}
        return stock(prompt, width=WIDTH, height=HEIGHT, generator=generator, **options).images

    expected = stock._unpack_latents(draw("latent"), HEIGHT, WIDTH, 8)[:, :, 0]
    assert far(served.latents([ask(prompt)]), expected) < 1e-5
    picture = served.generate([ask(prompt)]).images[0].astype(int)
    difference = np.abs(picture - np.asarray(draw("pil")[0]).astype(int))
    assert difference.max() <= 1
    assert (difference != 0).mean() < 0.01


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prompt", PROMPTS[:2], ids=["short", "long"])
def test_few_steps_follow_the_published_sampler(
    stock: QwenImagePipeline, served: Engine, folder: Path, prompt: str, steps: int
) -> None:
    expected = Reference(stock, folder).latents(prompt, FEW[steps], [0.0] * steps, renoise=True)
    assert far(served.latents([ask(prompt, steps)]), expected) < 1e-4


def test_any_step_aims_at_the_next_time(stock: QwenImagePipeline, served: Engine, folder: Path) -> None:
    expected = Reference(stock, folder).latents(PROMPTS[0], ANY, [0.75, 0.5, 0.0], renoise=False)
    assert far(served.latents([ask(PROMPTS[0], 3)]), expected) < 1e-4


@TWINFLOW
def test_the_second_embedder_matters(stock: QwenImagePipeline, served: Engine, folder: Path) -> None:
    reference = Reference(stock, folder)
    reference.second = None
    without = reference.latents(PROMPTS[0], FEW[1], [0.0], renoise=True)
    assert far(served.latents([ask(PROMPTS[0])]), without) > 1e-3


@PLAIN
def test_a_picture_does_not_depend_on_its_batch(served: Engine) -> None:
    requests = [ask(PROMPTS[0]), ask(PROMPTS[2]), ask(PROMPTS[0])]
    together = served.latents(requests)
    assert far(together[1:2], served.latents(requests[1:2])) < 1e-5
    assert torch.equal(together[0], together[2])


@PLAIN
def test_embeddings_are_the_pipelines(stock: QwenImagePipeline, served: Engine) -> None:
    tokenizer = served.model.tokenizer
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        expected, _ = stock.encode_prompt(prompt, device="cpu")
        with torch.no_grad():
            result = served.model.text(tokenizer.pad(ids).ids)[:, : len(ids)]
        assert far(result, expected.detach()) < 1e-5


@pytest.mark.parametrize(
    ("placement", "least", "most"),
    [
        (Placement(torch.device("cpu"), "bf16"), 1e-4, 0.02),
        (Placement(torch.device("cpu"), "fp8"), 3e-3, 0.1),
        (Placement(torch.device("cpu"), "fp32", text_fp8=True), 1e-3, 0.1),
    ],
    ids=["bf16", "fp8", "text-fp8"],
)
def test_narrow_formats_stay_near(
    folder: Path, served: Engine, placement: Placement, least: float, most: float
) -> None:
    model = QWEN_IMAGE.load(
        find_checkpoint(str(folder)), EngineConfig(steps=(1,)), placement, lambda _stage, _done: None
    )
    noise = torch.randn(1, 8, 6, 4, generator=torch.Generator().manual_seed(SEED))
    tokens = model.tokenizer.pad(model.tokenizer.encode(PROMPTS[0]))
    results = []
    with torch.inference_mode():
        for each in (model, served.model):
            caption = each.encode(*tokens)
            own = each.passes[1][0]
            results.append(each.denoise(noise, noise, caption, own.modulation, own.weights))
    difference = (results[0] - results[1]).norm() / results[1].norm()
    assert least < difference < most


@PLAIN
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("transformer_blocks.1.img_mod.1.weight"), "lacks 'transformer_blocks.1.img_mod.1"),
        (lambda w: w.update(extra=torch.ones(1)), "unknown parameters: 'extra'"),
        (lambda w: w.update({"img_in.bias": torch.ones(3)}), r"'img_in.bias' as \[3\], where .* \[48\]"),
        (
            lambda w: w.update({"norm_out.linear.bias": torch.ones(3)}),
            r"'norm_out.linear.bias' as \[3\], where .* \[96\]",
        ),
    ],
)
def test_a_damaged_transformer_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    damage(weights)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=message):
        Engine.load(EngineConfig(str(copy), device="cpu"))
