"""Configs of every family, made so small that its stages are exported in seconds."""

from typing import Any

from qwen_image_checkpoint import tiny_configs

from twinshot_engine.random_weights import PUBLISHED

Configs = dict[str, dict[str, Any]]


def _shrunk(name: str, **parts: dict[str, Any]) -> Configs:
    """A published checkpoint's configs with some values of some parts changed."""
    return {part: {**config, **parts.get(part, {})} for part, config in PUBLISHED[name].items()}


_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "latent_channels": 4}
_CLIP = {"vocab_size": 4096, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
_TEXT = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}

Z_IMAGE = _shrunk(
    "z-image",
    text_encoder=_TEXT,
    transformer={
        "in_channels": 4,
        "dim": 64,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 32,
        "axes_dims": [8, 12, 12],
        "axes_lens": [128, 64, 64],
    },
    vae=_VAE,
)
SD3 = _shrunk(
    "sd3.5-medium",
    text_encoder={**_CLIP, "num_attention_heads": 2, "projection_dim": 8},
    text_encoder_2={**_CLIP, "num_attention_heads": 2, "projection_dim": 16},
    text_encoder_3={
        "vocab_size": 4096,
        "d_model": 48,
        "d_ff": 64,
        "d_kv": 16,
        "num_layers": 1,
        "num_heads": 2,
    },
    transformer={
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 64,
        "dual_attention_layers": [0],
    },
    vae=_VAE,
)
SANA = _shrunk(
    "sana-1.6b",
    text_encoder={**_TEXT, "hidden_size": 40},
    transformer={
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 24,
        "cross_attention_dim": 48,
        "caption_channels": 40,
    },
    vae={
        "latent_channels": 4,
        "attention_head_dim": 8,
        "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
        "decoder_block_out_channels": [8, 16, 16],
        "decoder_layers_per_block": [1, 1, 1],
        "decoder_qkv_multiscales": [[], [], [5]],
    },
)
QWEN_IMAGE = tiny_configs(PUBLISHED["qwen-image"])

TINY: dict[str, Configs] = {"z-image": Z_IMAGE, "qwen-image": QWEN_IMAGE, "sana": SANA, "sd3.5": SD3}
"""By a name of ours."""
