"""A tiny random Qwen-Image checkpoint, written by diffusers and transformers rather than by our own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_qwenimage import QwenTimestepProjEmbeddings
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

TRANSFORMER: dict[str, Any] = {
    "in_channels": 32,
    "out_channels": 8,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 64,
    "axes_dims_rope": (4, 6, 6),
}
VAE: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 8,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1 * i - 0.3 for i in range(8)],
    "latents_std": [1.0 + 0.2 * i for i in range(8)],
}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 2048,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}
VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [0],
}
SECOND = "time_text_embed_2."


def shake(module: nn.Module, std: float) -> None:
    """Add noise to every parameter, so that no zero or one hides a mistake."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=std)


def make_text_model() -> Qwen2_5_VLForConditionalGeneration:
    """Build a two-layer Qwen2.5-VL with grouped keys and a vision tower that nobody needs."""
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION)
    ).eval()
    shake(model, 0.05)
    return model


def make_transformer() -> QwenImageTransformer2DModel:
    """Build a three-layer transformer."""
    model = QwenImageTransformer2DModel(**TRANSFORMER).eval()
    shake(model, 0.05)
    return model


def make_vae() -> AutoencoderKLQwenImage:
    """Build an autoencoder of four levels."""
    model = AutoencoderKLQwenImage(**VAE).eval()
    shake(model, 0.05)
    return model


def make_second_embedder() -> nn.Module:
    """Build what TwinFlow adds to the transformer."""
    module = QwenTimestepProjEmbeddings(
        TRANSFORMER["attention_head_dim"] * TRANSFORMER["num_attention_heads"]
    )
    shake(module, 0.1)
    return module


def write_checkpoint(folder: Path, tokenizer: PreTrainedTokenizerFast, *, second: bool) -> None:
    """Save random parts as a ``QwenImagePipeline`` folder, with TwinFlow's second embedder if asked for."""
    torch.manual_seed(7)
    transformer, vae, text = make_transformer(), make_vae(), make_text_model()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    QwenImagePipeline(scheduler, vae, text, tokenizer, transformer).save_pretrained(folder)
    if second:
        weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        added = {SECOND + name: w for name, w in make_second_embedder().state_dict().items()}
        save_file(load_file(weights) | added, weights, metadata={"format": "pt"})


def tiny_configs(published: Mapping[str, Mapping[str, Any]], **transformer: Any) -> dict[str, dict[str, Any]]:
    """Shrink the configs of a published checkpoint; its vocabulary stays, for its tokenizer."""
    text = {key: TEXT[key] for key in TEXT if key not in ("vocab_size", "max_position_embeddings")}
    return {
        "model_index.json": dict(published["model_index.json"]),
        "text_encoder": dict(published["text_encoder"]) | text,
        "transformer": TRANSFORMER | {"axes_dims_rope": [4, 6, 6]} | transformer,
        "vae": dict(VAE),
    }
