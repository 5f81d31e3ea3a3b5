"""Tiny checkpoints that tests of TensorRT export and build, and what they are built for."""

from pathlib import Path
from typing import Any

from twinshot_engine.random_weights import PUBLISHED
from twinshot_engine.tensorrt.build import BuildConfig

TINY_Z_IMAGE: dict[str, dict[str, Any]] = {
    "model_index.json": {"_class_name": "ZImagePipeline"},
    "text_encoder": {
        **PUBLISHED["z-image"]["text_encoder"],
        "vocab_size": 4096,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "transformer": {
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
    "vae": {
        **PUBLISHED["z-image"]["vae"],
        "block_out_channels": [32, 32, 32, 32],
        "layers_per_block": 1,
        "latent_channels": 4,
    },
}
SIZES = ((256, 256), (272, 256))
"""The second leaves image tokens that are padded."""

GPU = "sm_89"


def quiet(_what: str, _done: float) -> None:
    """Report to nobody."""


def fake_order(checkpoint: str, folder: Path, **more: Any) -> BuildConfig:
    """What the fake is asked to build: in fp32, which onnxruntime computes."""
    wanted: dict[str, Any] = {"sizes": SIZES[1:], "batch_sizes": (1, 2), "library": "tensorrt", **more}
    return BuildConfig(checkpoint, folder, precision="fp32", **wanted)
