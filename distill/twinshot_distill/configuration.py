"""The miniature's shape and the settings of its training, in one place.

The shape is TwinFlow-Z-Image-Turbo's, scaled down: the dictionaries are the checkpoint's own
`config.json` files. Stage lengths are given in seconds, since GPU time is what is scarce; learning
rates follow the share of that time that has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from twinshot_distill.tokenizer import VOCABULARY_SIZE

TRANSFORMER: dict[str, Any] = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 8,
    "dim": 320,
    "n_layers": 8,
    "n_refiner_layers": 1,
    "n_heads": 5,
    "n_kv_heads": 5,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 192,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [16, 24, 24],
    "axes_lens": [512, 64, 64],
}

TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [32, 64, 128, 128],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 8,
    "norm_num_groups": 8,
    "sample_size": 256,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": False,
}


@dataclass(frozen=True, slots=True)
class World:
    """How much data is prepared: scenes with captions, pictures a background, latents in the pool."""

    scenes: int = 250_000
    scene_variations: int = 32
    plain_variations: int = 12
    pool: int = 32_768
    refresh: int = 32
    workers: int = 16


@dataclass(frozen=True, slots=True)
class AutoencoderSettings:
    """Stage 1."""

    seconds: float = 100
    batch: int = 64
    learning_rate: float = 8e-4
    ema: float = 0.995
    kl_weight: float = 2e-4
    latent_noise: float = 0.05


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Stage 2: flow matching, text encoder and transformer together."""

    seconds: float = 255
    batch: int = 512
    learning_rate: float = 1.5e-3
    final_share: float = 0.03
    warm_up: int = 150
    ema: float = 0.998
    caption_drop: float = 0.1
    long_share: float = 0.1


@dataclass(frozen=True, slots=True)
class TwinFlowSettings:
    """Stage 3: the transformer alone; `batch` is split evenly into the four row groups."""

    seconds: float = 60
    batch: int = 512
    learning_rate: float = 3e-4
    final_share: float = 0.05
    warm_up: int = 80
    ema: float = 0.995
    teacher_ema: float = 0.99
    order: int = 2
    guidance: float = 1.0
    rectify: float = 1.0
    long_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """One whole run; `compiled` turns torch.compile off for a try on a CPU."""

    world: World = World()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    flow: FlowSettings = FlowSettings()
    twinflow: TwinFlowSettings = TwinFlowSettings()
    compiled: bool = True
    seed: int = 0
    previews: int = 48


def changed(run: Run, assignments: Sequence[str]) -> Run:
    """The run with settings replaced: each assignment reads "stage.name=value", such as "flow.batch=512".

    Raises ValueError naming an assignment whose stage, name or value is not known.
    """
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        part, _, name = path.partition(".")
        settings = getattr(run, part, None)
        old = getattr(settings, name, None) if name else None
        if settings is None or not isinstance(old, (int, float)):
            raise ValueError(
                f"unknown setting {assignment!r}; write STAGE.NAME=NUMBER, such as flow.batch=512"
            )
        try:
            value = type(old)(text)
        except ValueError:
            raise ValueError(f"{text!r} in {assignment!r} is not a {type(old).__name__}") from None
        run = replace(run, **{part: replace(settings, **{name: value})})
    return run


def rehearsal() -> Run:
    """Everything at its smallest, to see on a CPU in a minute or two that each stage runs."""
    return Run(
        World(scenes=400, scene_variations=1, plain_variations=1, pool=64, refresh=4, workers=2),
        AutoencoderSettings(seconds=12, batch=4),
        FlowSettings(seconds=12, batch=8, warm_up=2),
        TwinFlowSettings(seconds=15, batch=8, warm_up=2),
        compiled=False,
        previews=2,
    )
