"""Adapters, lone transformers and single times of the families beside Z-Image, in small checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copy, copytree
from typing import Any, NamedTuple

import pytest
import qwen_image_checkpoint
import tiny_sana
import tiny_sd3
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.schedule import Steps
from twinshot_engine.types import GenerateRequest

REQUEST = GenerateRequest("a red apple", seed=3, steps=2)
STORED = "transformer/diffusion_pytorch_model.safetensors"
RANK, ALPHA = 4, 6.0


class Case(NamedTuple):
    """A family's small checkpoint, and what TwinFlow's LoRAs adapt of it."""

    write: Callable[[Path, PreTrainedTokenizerFast], object]
    modules: list[str]


QWEN_MODULES = [
    *(f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
    *(f"transformer_blocks.1.attn.add_{name}_proj" for name in "qkv"),
    *(
        f"transformer_blocks.1.{stream}_mlp.net.{layer}"
        for stream in ("img", "txt")
        for layer in ("0.proj", "2")
    ),
    "transformer_blocks.2.attn.to_q",
    "transformer_blocks.2.txt_mlp.net.2",  # which nothing reads
    *(f"time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2)),
]
SD3_MODULES = [
    *(f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj")),
    *(f"transformer_blocks.1.attn2.{name}" for name in ("to_q", "to_v")),
    *(f"time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2)),
]
SANA_MODULES = [
    *(f"transformer_blocks.{block}.attn1.to_{part}" for block, part in enumerate("qkv")),
    *(f"transformer_blocks.1.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.0.ff.conv_inverted",  # 1x1 convolutions
    "transformer_blocks.2.ff.conv_point",
    "patch_embed.proj",
    "caption_projection.linear_1",
    "time_embed.linear",
    "time_embed.emb.timestep_embedder.linear_1",
]
CASES = {
    "qwen-image": Case(
        lambda folder, words: qwen_image_checkpoint.write_checkpoint(folder, words, second=False),
        QWEN_MODULES,
    ),
    "sana": Case(
        lambda folder, _words: tiny_sana.write(folder, tiny_sana.TRANSFORMER, sprint=False), SANA_MODULES
    ),
    "sd3": Case(lambda folder, _words: tiny_sd3.write_checkpoint(folder, second=False), SD3_MODULES),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(case: Case, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model that LoRAs are trained on, which has one time embedder."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    case.write(folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def bare(folder: Path) -> Engine:
    return load(folder)


def load(folder: Path, *adapters: str, **more: Any) -> Engine:
    config = EngineConfig(str(folder), device="cpu", adapters=adapters, sizes=((256, 256),), **more)
    return Engine.load(config)


def far(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def test_a_twinflow_lora_is_merged_and_switched(
    case: Case, folder: Path, bare: Engine, tmp_path: Path
) -> None:
    merged = Path(copytree(folder, tmp_path / "merged"))
    weights, tensors = load_file(merged / STORED), {}
    for module in case.modules:
        rows, columns, *kernel = weights[f"{module}.weight"].shape
        down, up = (torch.randn(*shape, *kernel) * 0.1 for shape in ((RANK, columns), (rows, RANK)))
        weights[f"{module}.weight"] += ALPHA / RANK * torch.einsum("or...,ri...->oi...", up, down)
        tensors |= {f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}
        tensors[f"transformer.{module}.alpha"] = torch.tensor(ALPHA)
    save_file(weights, merged / STORED)
    save_file(tensors, tmp_path / "twinflow.safetensors")
    expected, plain = load(merged).latents([REQUEST]), bare.latents([REQUEST])
    assert far(plain, expected) > 1e-2
    served = load(folder, f"fast={tmp_path / 'twinflow.safetensors'}")
    chosen = replace(REQUEST, adapter="fast")
    assert torch.equal(served.latents([REQUEST]), plain)
    assert far(served.latents([chosen]), expected) < 1e-4
    assert torch.equal(served.latents([REQUEST]), plain)
    assert torch.equal(
        load(folder, str(tmp_path / "twinflow.safetensors")).latents([REQUEST]), served.latents([chosen])
    )


def test_a_lone_transformer_is_completed_by_a_base(folder: Path, bare: Engine, tmp_path: Path) -> None:
    path = tmp_path / "repacked.safetensors"
    stored = load_file(folder / STORED)
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in stored.items()}, path)
    assert torch.equal(load(path, base=str(folder)).latents([REQUEST]), bare.latents([REQUEST]))


def test_a_lone_sprint_is_not_taken_for_sana(tmp_path: Path) -> None:
    """It has all of SANA's names."""
    sprint = tiny_sana.write(tmp_path / "sprint", tiny_sana.SPRINT, sprint=True)
    plain = tiny_sana.write(tmp_path / "plain", tiny_sana.TRANSFORMER, sprint=False)
    path = Path(copy(sprint / STORED, tmp_path / "alone.safetensors"))
    served, expected = load(path, base=str(sprint)), load(sprint)
    assert served.info.family == "SanaSprintPipeline"
    with pytest.raises(CheckpointError, match="steps 'any:4': SANA-Sprint has its own"):
        load(sprint, steps=(1, Steps(4, "any")))
    assert torch.equal(served.latents([REQUEST]), expected.latents([REQUEST]))
    with pytest.raises(CheckpointError, match=r"such as '.*/Sana_Sprint_1.6B_1024px_diffusers'"):
        load(path)
    with pytest.raises(CheckpointError, match=r"is of SanaSprintPipeline, but the base .* of SanaPipeline"):
        load(path, base=str(plain))


def test_the_base_takes_guidance_and_any_steps_see_both_times(folder: Path) -> None:
    served = load(folder, steps=(Steps(2, "any"), Steps(3, "multi")))
    assert served.info.guided_steps == (3,)
    request = replace(REQUEST, steps=3)
    assert far(served.latents([replace(request, guidance=4.0)]), served.latents([request])) > 1e-3
    # At its last step "any" aims at the data, as "few" does; before, at half the way to the next time.
    few = load(folder, steps=(2,))
    assert far(served.latents([REQUEST]), few.latents([REQUEST])) > 1e-3
