"""Random Stable Diffusion 3.5: shapes of the published one, and stock modules draw the same from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from twinshot_engine import random_weights as module
from twinshot_engine.benchmark.compare import compare
from twinshot_engine.benchmark.latency import Job
from twinshot_engine.config import EngineConfig
from twinshot_engine.random_weights import PUBLISHED, find_random

NAME = "sd3.5-medium"
CLIP = {"vocab_size": 4096, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TINY: dict[str, dict[str, Any]] = {
    "model_index.json": PUBLISHED[NAME]["model_index.json"],
    "text_encoder": {
        **PUBLISHED[NAME]["text_encoder"],
        **CLIP,
        "num_attention_heads": 2,
        "projection_dim": 8,
    },
    "text_encoder_2": {
        **PUBLISHED[NAME]["text_encoder_2"],
        **CLIP,
        "num_attention_heads": 2,
        "projection_dim": 16,
    },
    "text_encoder_3": {
        **PUBLISHED[NAME]["text_encoder_3"],
        "vocab_size": 4096,
        "d_model": 48,
        "d_ff": 64,
        "d_kv": 16,
        "num_layers": 2,
        "num_heads": 2,
    },
    "transformer": {
        **PUBLISHED[NAME]["transformer"],
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 64,
        "dual_attention_layers": [0, 1],
    },
    "vae": {
        **PUBLISHED[NAME]["vae"],
        "block_out_channels": [32, 32, 32, 32],
        "layers_per_block": 1,
        "latent_channels": 4,
    },
}


def test_published_shapes_are_those_of_diffusers_and_transformers() -> None:
    checkpoint = find_random(f"random:{NAME}")
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**checkpoint.read_json("transformer"))
        clips = {
            name: CLIPTextModelWithProjection(CLIPTextConfig(**checkpoint.read_json(name)))
            for name in ("text_encoder", "text_encoder_2")
        }
        t5 = T5EncoderModel(T5Config(**checkpoint.read_json("text_encoder_3")))
    for name, theirs in {"transformer": transformer, **clips, "text_encoder_3": t5}.items():
        shapes = {
            key: header.shape
            for key, header in checkpoint.part(name).headers.items()
            if not key.startswith("time_text_embed_2.")
        }
        stored = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
        stored.pop("encoder.embed_tokens.weight", None)  # of T5; one with ``shared.weight``
        assert shapes == stored, name


def test_stock_modules_draw_the_same_from_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLISHED", {"tiny": TINY})
    config = EngineConfig("random:tiny", device="cpu", sizes=((256, 256),), steps=(1,))
    job = Job(256, 256, tokens=64, samples=2, warm=0)
    systems = compare(
        find_random("random:tiny"), [config], job, lambda image: b"", lambda _: None, compiled=False
    )
    by_part = {(row["system"], row["part"]): row for rows in systems for row in rows}
    assert by_part["twinshot", "denoise"]["denoise_error"] < 1e-5
    assert by_part["twinshot", "decode"]["decode_levels"] < 0.02
    assert 0 < by_part["diffusers", "denoise"]["denoise_error"] < 0.1  # in bf16
