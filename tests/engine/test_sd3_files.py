"""Stable Diffusion 3.5's transformer alone under the original release's names, completed by a base.

The files are made from diffusers' transformer by a mapping written here, which diffusers' converter undoes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from tiny_sd3 import TRANSFORMER, write_checkpoint
from torch import Tensor

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.errors import CheckpointError
from twinshot_engine.types import GenerateRequest

REQUEST = GenerateRequest("a red apple", seed=3, steps=2, width=256, height=256)
STORED = "transformer/diffusion_pytorch_model.safetensors"
LAST = TRANSFORMER["num_layers"] - 1
RANK = 4
Weights = dict[str, Tensor]

OUTSIDE = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
INSIDE = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
FUSED = {
    "x_block.attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "x_block.attn2.qkv": ["attn2.to_q", "attn2.to_k", "attn2.to_v"],
    "context_block.attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
}


def modules() -> dict[str, list[str]]:
    """The original's modules, each with those of diffusers' whose rows it holds one after another."""
    found = {original: [ours] for ours, original in OUTSIDE.items()}
    for block in range(LAST + 1):
        here, there = f"transformer_blocks.{block}.", f"joint_blocks.{block}."
        found |= {there + original: [here + ours] for ours, original in INSIDE.items()}
        found |= {there + original: [here + part for part in parts] for original, parts in FUSED.items()}
    return found


SWAPPED = ("final_layer.adaLN_modulation.1", f"joint_blocks.{LAST}.context_block.adaLN_modulation.1")
"""Where the original has the shift before the scale and diffusers has the scale first."""


def swap(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def as_original(weights: Weights) -> Weights:
    """Name, fuse and order the tensors as the original release does."""
    made = {}
    for original, parts in modules().items():
        for kind in ("", ".weight", ".bias"):
            if parts[0] + kind in weights:
                tensor = torch.cat([weights[part + kind] for part in parts])
                made[original + kind] = swap(tensor) if original in SWAPPED else tensor
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3") / "checkpoint"
    write_checkpoint(folder, second=False)
    return folder


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    return load_file(folder / STORED)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Tensor:
    return load(folder, None).latents([REQUEST])


def load(reference: Path, base: Path | None, *adapters: str) -> Engine:
    config = EngineConfig(
        str(reference), base=base and str(base), device="cpu", sizes=((256, 256),), adapters=adapters
    )
    return Engine.load(config)


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def test_the_files_made_here_are_what_diffusers_takes_for_the_original(weights: Weights) -> None:
    original = as_original(weights)
    assert sum(tensor.numel() for tensor in original.values()) == sum(w.numel() for w in weights.values())
    converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items())


FORMS: dict[str, Callable[[Weights], Weights]] = {
    "original": as_original,
    "original, with everything": lambda w: {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in as_original(w).items()},
        "text_encoders.clip_l.transformer.text_model.final_layer_norm.bias": torch.ones(3),
        "first_stage_model.decoder.conv_in.weight": torch.ones(3),
    },
    "diffusers": dict,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_transformer(
    folder: Path, weights: Weights, expected: Tensor, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "sd3.5_medium.safetensors"
    save_file({name: w.contiguous() for name, w in FORMS[form](weights).items()}, path)
    loaded = load(path, folder)
    assert torch.equal(loaded.latents([REQUEST]), expected)
    assert (loaded.info.name, loaded.info.family) == ("sd3.5_medium", "StableDiffusion3Pipeline")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("joint_blocks.0.x_block.attn.qkv.weight", (97, 32)),
        ("joint_blocks.0.context_block.attn.qkv.bias", ()),
        ("final_layer.adaLN_modulation.1.bias", ()),
    ],
)
def test_a_misshapen_tensor_is_named(
    folder: Path, weights: Weights, tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    save_file(as_original(weights) | {key: torch.zeros(shape)}, tmp_path / "file.safetensors")
    said = r"\[33, 32\], where .* \[32, 32\]" if shape else r"\[\], where .* \[\d+\]"
    with pytest.raises(CheckpointError, match=f"file.safetensors' stores '.*', in '{key}', as {said}"):
        load(tmp_path / "file.safetensors", folder)


def test_a_lora_with_rows_too_many_is_refused(folder: Path, tmp_path: Path) -> None:
    factors = {"A": torch.ones(RANK, 32), "B": torch.ones(97, RANK)}
    stem, path = "joint_blocks.0.x_block.attn.qkv.lora", tmp_path / "lora.safetensors"
    save_file({f"{stem}_{name}.weight": factor for name, factor in factors.items()}, path)
    with pytest.raises(CheckpointError, match=rf"update of \[33, 32\] in '{stem}_B.weight' and"):
        load(folder, None, str(path))


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_files_are_of_the_original_names(
    folder: Path, weights: Weights, expected: Tensor, tmp_path: Path, kind: str
) -> None:
    """As tools write them that quantise: matrices in blocks of 32, and no first axis of 1."""
    writer = gguf.GGUFWriter(tmp_path / "file.gguf", "sd3")
    for name, tensor in as_original(weights).items():
        values = (tensor.squeeze(0) if name == "pos_embed" else tensor).numpy()
        fits = values.ndim == 2 and values.shape[1] % 32 == 0 and name != "pos_embed"
        chosen = gguf.GGMLQuantizationType[kind if fits else "F32"]
        writer.add_tensor(name, gguf.quantize(values, chosen), raw_dtype=chosen)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    drawn = load(tmp_path / "file.gguf", folder).latents([REQUEST])
    assert torch.equal(drawn, expected) if kind == "F32" else 0 < far(drawn, expected) < 0.1


ADAPTED = [
    "final_layer.adaLN_modulation.1",
    "final_layer.linear",
    *(f"joint_blocks.{block}.context_block.adaLN_modulation.1" for block in (0, LAST)),
    "joint_blocks.1.x_block.adaLN_modulation.1",
    *(f"joint_blocks.0.{fused}" for fused in FUSED),
    "joint_blocks.0.x_block.attn2.proj",
    f"joint_blocks.{LAST}.x_block.mlp.fc2",
    "context_embedder",
    "t_embedder.mlp.0",
]
NAMES: dict[str, Callable[[str], str]] = {
    "dots": lambda module: f"diffusion_model.{module}",
    "underscores": lambda module: f"lora_unet_{module.replace('.', '_')}",
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("on", ["folder", "file"])
def test_a_lora_may_have_the_original_names(
    folder: Path, weights: Weights, expected: Tensor, tmp_path: Path, names: str, on: str
) -> None:
    original, tensors = as_original(weights), {}
    save_file(original, tmp_path / "base.safetensors")
    for module in ADAPTED:
        rows, columns = original[f"{module}.weight"].shape
        down, up = torch.randn(RANK, columns) * 0.1, torch.randn(rows, RANK) * 0.1
        original[f"{module}.weight"] = original[f"{module}.weight"] + up @ down
        stem = NAMES[names](module)
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")
    save_file(convert_sd3_transformer_checkpoint_to_diffusers(original), tmp_path / "merged.safetensors")
    merged = load(tmp_path / "merged.safetensors", folder).latents([REQUEST])
    assert far(expected, merged) > 1e-2
    lora = f"style={tmp_path / 'lora.safetensors'}"
    served = load(folder, None, lora) if on == "folder" else load(tmp_path / "base.safetensors", folder, lora)
    assert far(served.latents([replace(REQUEST, adapter="style")]), merged) < 1e-4
    assert torch.equal(served.latents([REQUEST]), expected)


def test_what_is_missing_is_named(folder: Path, weights: Weights, tmp_path: Path) -> None:
    original = as_original(weights)
    del original["joint_blocks.1.x_block.attn2.ln_q.weight"]
    save_file(original, tmp_path / "cut.safetensors")
    said = r"cut.safetensors' lacks 'transformer_blocks.1.attn2.norm_q.weight'"
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "cut.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"such as 'stabilityai/stable-diffusion-3.5-medium'"):
        load(tmp_path / "cut.safetensors", None)
