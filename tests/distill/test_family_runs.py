"""Whole runs of every family on tiny checkpoints: pictures, cache, training, export, and the engine draws.

With LoRA the layers are the family's own, as in a run file that names none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sana
import tiny_sd3
import torch
from qwen_image_checkpoint import write_checkpoint as write_qwen
from safetensors.torch import load_file
from tiny_checkpoint import write_tiny

from twinshot_distill.distillation import distill
from twinshot_distill.runfile import read_run_file
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

SIDE = 64
WRITERS: dict[str, Callable[[Path], object]] = {
    "z-image": lambda folder: write_tiny(folder, second_embedder=False),
    "qwen-image": lambda folder: write_qwen(
        folder, tiny_sana.make_tokenizer("<|im_start|>", "<|im_end|>"), second=False
    ),
    "sana": lambda folder: tiny_sana.write(folder, tiny_sana.TRANSFORMER, sprint=False),
    "sd3.5": lambda folder: tiny_sd3.write_checkpoint(folder, second=False),
}
TIME_LAYER = {
    "z-image": "t_embedder.mlp.2",
    "qwen-image": "time_text_embed.timestep_embedder.linear_2",
    "sana": "time_embed.emb.timestep_embedder.linear_2",
    "sd3.5": "time_text_embed.timestep_embedder.linear_2",
}
"""A layer of the time embedder that gets an adapter, as in the released recipes."""


@pytest.fixture(scope="module", params=sorted(WRITERS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    WRITERS[family](folder)
    return folder


def trained(
    folder: Path, base: Path, pictures: Path, changes: dict[str, Any], device: str = "cpu", name: str = "out"
) -> Path:
    out = folder / name
    path = folder / "run.toml"
    path.write_text(
        f'checkpoint = "{base}"\nsize = [{SIDE}, {SIDE}]\nbatch = 4\ngradient_checkpointing = true\n'
        f'[data]\nkind = "folder"\npath = "{pictures}"\n[length]\nsteps = 2\n'
        f"[optimizer]\nlearning_rate = 1e-2\n[reporting]\nsample_seconds = 0.01\nseconds = 0.01\n"
    )
    distill(read_run_file(path, changes), out, device)
    assert list((out / "samples").glob("*.webp"))
    return out


def served(checkpoint: Path, *adapters: str) -> np.ndarray[Any, Any]:
    engine = Engine.load(EngineConfig(str(checkpoint), device="cpu", precision="fp32", adapters=adapters))
    return engine.generate([GenerateRequest("a red apple", 1, SIDE, SIDE, steps=1)]).images


def test_all_weights(tmp_path: Path, base: Path, pictures: Path) -> None:
    out = trained(tmp_path, base, pictures, {"precision": "bf16"})
    drawn = served(out / "checkpoint")
    assert drawn.shape == (1, SIDE, SIDE, 3)
    assert not np.array_equal(drawn, served(base))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_adapters_on_the_familys_own_layers(
    tmp_path: Path, family: str, base: Path, pictures: Path, precision: str
) -> None:
    changes = {"precision": precision, "lora.rank": 2, "lora.alpha": 2.0, "objective.teacher_decay": 1.0}
    out = trained(tmp_path, base, pictures, changes)
    adapter = out / "adapter" / "pytorch_lora_weights.safetensors"
    ups = {name: up for name, up in load_file(adapter).items() if "lora_B" in name}
    assert ups[f"transformer.{TIME_LAYER[family]}.lora_B.weight"].any()
    assert sum(bool(up.any()) for up in ups.values()) > len(ups) / 2
    adapted, merged = served(base, str(adapter)), served(out / "checkpoint")
    apart, moved = (np.abs(other.astype(int) - merged).mean() for other in (adapted, served(base)))
    assert apart < moved / 4  # merged in fp32, or stored in bf16


@pytest.mark.gpu
@pytest.mark.parametrize("adapters", [False, True])
def test_a_resumed_run_has_an_unbroken_ones_bits_on_a_gpu(
    tmp_path: Path, base: Path, pictures: Path, adapters: bool
) -> None:
    changes: dict[str, Any] = {"lora.rank": 2} if adapters else {}
    whole = trained(tmp_path, base, pictures, changes, "cuda", "whole")
    trained(tmp_path, base, pictures, changes | {"length.steps": 1}, "cuda", "parts")
    parts = trained(tmp_path, base, pictures, changes, "cuda", "parts")
    file = "transformer/diffusion_pytorch_model.safetensors"
    first, second = (load_file(out / "checkpoint" / file) for out in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
