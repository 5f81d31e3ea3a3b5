"""A Z-Image checkpoint of some thousand parameters, in diffusers' layout, with the built-in tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_engine.text.qwen3 import build_model
from twinshot_engine.transformer import SingleStreamConfig, SingleStreamTransformer
from twinshot_engine.vae.kl import AutoencoderKL
from twinshot_engine.vae.kl_config import KLConfig

SIDE = 64
"""Of its pictures, in pixels."""

TRANSFORMER: dict[str, Any] = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 4,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 64,
    "axes_dims": [8, 12, 12],
    "axes_lens": [128, 32, 32],
}
TEXT_ENCODER: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 2560,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.1,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def write_tiny(folder: Path, *, second_embedder: bool = True) -> Path:
    """Write the checkpoint with fresh weights; without its second time embedder it is a plain Z-Image."""
    torch.manual_seed(11)
    config = SingleStreamConfig.from_dict({**TRANSFORMER, "second_time_embedder": second_embedder})
    transformer = SingleStreamTransformer(config)
    transformer.init_weights()
    for parameter in transformer.parameters():  # fresh gates are zero, and nothing would depend on anything
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    text, vae = build_model(TEXT_ENCODER), AutoencoderKL(KLConfig.from_dict(VAE))
    stored: dict[str, tuple[dict[str, Any], nn.Module, str]] = {
        "transformer": (TRANSFORMER, transformer, "diffusion_pytorch_model"),
        "text_encoder": (TEXT_ENCODER, text, "model"),
        "vae": (VAE, vae, "diffusion_pytorch_model"),
    }
    for part, (settings, module, stem) in stored.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(settings))
        state = {name: tensor.bfloat16().contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, folder / part / f"{stem}.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ZImagePipeline"}))
    (folder / "twinshot.json").write_text(json.dumps({"name": "tiny", "sizes": [[SIDE, SIDE]]}))
    shutil.copytree(BUILTIN_FOLDER / "tokenizer", folder / "tokenizer")
    return folder
