"""Stable Diffusion 3.5 folders: planned, loaded in every precision, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sd3 import CLIP_TOKENS, write_checkpoint
from torch import Tensor

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_engine.families import find_family, plan
from twinshot_engine.families.model import Model
from twinshot_engine.precision import FP8
from twinshot_engine.types import GenerateRequest

CPU = torch.device("cpu")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_checkpoint(folder)
    return folder


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def load(folder: Path, precision: str, *, text_fp8: bool = False) -> Model:
    checkpoint, config = Checkpoint(folder, "test"), EngineConfig(str(folder), steps=(1, 2))
    placement = Placement(CPU, precision, text_fp8)
    return find_family(checkpoint).load(checkpoint, config, placement, lambda _stage, _done: None)


@torch.no_grad()
def one_pass(model: Model) -> Tensor:
    noise = torch.randn((1, 4, 32, 36), generator=torch.Generator().manual_seed(3))
    constants = model.passes[1][0]
    caption = model.encode(*model.tokenizer.pad(model.tokenizer.encode("two blue vases")))
    for tensor, like in zip(caption, model.caption_like(model.tokenizer.buckets[0]), strict=True):
        assert (tuple(tensor.shape), tensor.dtype) == like
    return model.denoise(noise, noise, caption, constants.modulation, constants.weights)


def test_half_and_fp8_differ_by_their_rounding_alone(folder: Path) -> None:
    exact = one_pass(load(folder, "fp32"))
    assert 1e-4 < far(one_pass(load(folder, "bf16")), exact) < 0.03
    model = load(folder, "fp8", text_fp8=True)
    formats = {name: p.dtype for part in model.parts.values() for name, p in part.named_parameters()}
    assert formats["transformer_blocks.0.attn.add_qkv.weight"] == FP8
    assert formats["modulation.linear.weight"] == FP8
    assert formats["second.layers.0.up.weight"] == formats["t5.layers.0.gate_up.weight"] == FP8
    assert formats["first.layers.0.up.weight"] == formats["proj_out.weight"] == torch.bfloat16
    assert 1e-3 < far(one_pass(model), exact) < 0.15


@pytest.mark.parametrize("size", [(256, 256), (272, 256), (384, 304)])
def test_positions_are_the_middle_ones_whatever_is_advertised(folder: Path, size: tuple[int, int]) -> None:
    request = GenerateRequest("a red apple", seed=2, width=size[0], height=size[1])
    every, one = (
        Engine.load(EngineConfig(str(folder), device="cpu", sizes=sizes)) for sizes in (None, (size,))
    )
    torch.testing.assert_close(one.latents([request]), every.latents([request]))


def test_a_plan_tells_sizes_limits_and_parts(folder: Path) -> None:
    planned = plan(Checkpoint(folder, "test"), EngineConfig(str(folder)), Placement(CPU, "fp32"))
    assert planned.size_rule == "multiples of 16 from 256 to 384"
    assert (planned.max_prompt_tokens, planned.few_steps) == (256, True)
    assert list(planned.weight_bytes) == [
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "transformer",
        "decoder",
    ]


def test_requests_that_cannot_be_drawn_are_refused(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder), device="cpu"))
    with pytest.raises(InvalidRequestError, match="264x256 is not supported"):
        engine.validate(GenerateRequest("a vase", 1, 264, 256))
    with pytest.raises(InvalidRequestError, match="more than the limit of 256"):
        engine.validate(GenerateRequest("a vase " * 300, 1, 256, 256))


def edit_json(path: Path, **change: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def drop(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no T5, though the index names it": (
        lambda f: shutil.rmtree(f / "text_encoder_3"),
        "text_encoder_3/config.json' is missing",
    ),
    "no second CLIP": (
        lambda f: shutil.rmtree(f / "text_encoder_2"),
        "text_encoder_2/config.json' is missing",
    ),
    "no third tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_3"), "tokenizer_3' is missing"),
    "truncated T5": (
        lambda f: truncate(f / "text_encoder_3/model.safetensors"),
        "text_encoder_3/model.safetensors' is truncated",
    ),
    "no positions": (
        lambda f: edit_weights(f / WEIGHTS, drop("pos_embed.pos_embed")),
        "lacks 'pos_embed.pos_embed'",
    ),
    "fewer positions": (
        lambda f: edit_json(f / "transformer/config.json", pos_embed_max_size=32),
        r"stores 'pos_embed.pos_embed' as \[1, 576, 32\], where its config says \[1, 1024, 32\]",
    ),
    "half a second embedder": (
        lambda f: edit_weights(f / WEIGHTS, drop("time_text_embed_2.timestep_embedder.linear_1.bias")),
        "lacks 'time_text_embed_2.timestep_embedder.linear_1.bias'",
    ),
    "no adaLN": (
        lambda f: edit_weights(f / WEIGHTS, drop("transformer_blocks.1.norm1_context.linear.weight")),
        "lacks 'transformer_blocks.1.norm1_context.linear.weight'",
    ),
    "key of another family": (
        lambda f: edit_weights(f / WEIGHTS, lambda w: w | {"x_pad_token": torch.ones(1)}),
        "has unknown parameters: 'x_pad_token'",
    ),
    "other dual layers": (
        lambda f: edit_json(f / "transformer/config.json", dual_attention_layers=[0, 1, 2]),
        r"lacks 'transformer_blocks.2.attn2",
    ),
    "dual layers that do not exist": (
        lambda f: edit_json(f / "transformer/config.json", dual_attention_layers=[7]),
        r"dual_attention_layers \[7\] are not among 3 layers",
    ),
    "no norm of queries": (
        lambda f: edit_json(f / "transformer/config.json", qk_norm=None),
        "qk_norm None is not supported: 'rms_norm' is",
    ),
    "unknown key": (
        lambda f: edit_json(f / "transformer/config.json", surprise=1),
        r"unknown keys \['surprise'\]",
    ),
    "another T5's width": (
        lambda f: edit_json(f / "text_encoder_3/config.json", d_model=64),
        "the T5 makes 64 channels, but the transformer reads 48",
    ),
    "CLIPs with another pool": (
        lambda f: edit_json(f / "transformer/config.json", pooled_projection_dim=24),
        "the CLIPs' pool makes 20 channels, but the transformer reads 24",
    ),
    "another decoder": (
        lambda f: edit_json(f / "vae/config.json", latent_channels=8),
        "stores 'decoder.conv_in.weight'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    harm(copy)
    with pytest.raises(CheckpointError, match=message):
        Engine.load(EngineConfig(str(copy), device="cpu"))


def test_clips_read_the_beginning_of_a_long_prompt(folder: Path) -> None:
    engine = Engine.load(EngineConfig(str(folder), device="cpu"))
    first, second = (f"{'vase ' * CLIP_TOKENS} {word}" for word in ("red", "blue"))
    one, two = (engine.latents([GenerateRequest(prompt, 1, 256, 256)]) for prompt in (first, second))
    assert 0 < far(one, two) < 0.5  # T5 alone tells them apart
