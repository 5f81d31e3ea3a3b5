"""The miniature's shape and the settings of its training, in one place.

The shape is TwinFlow-Z-Image-Turbo's, scaled down: the dictionaries are the checkpoint's own
`config.json` files. Stage lengths are given in seconds, since GPU time is what is scarce; learning
rates follow the share of that time that has passed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twinshot_distill.loop import Length
from twinshot_distill.miniature.tokenizer import VOCABULARY_SIZE
from twinshot_distill.objective import Objective
from twinshot_distill.optimizer import OptimizerSettings

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
    """How much data is prepared: scenes with captions, pictures a background, latents in the pool.

    Every `refresh_steps` steps `refresh` of the latents are replaced. `workers` processes prepare scenes, one
    a core if 0.
    """

    scenes: int = 400_000
    scene_variations: int = 16
    plain_variations: int = 12
    pool: int = 32_768
    refresh: int = 256
    refresh_steps: int = 8
    workers: int = 0


_AUTOENCODER_OPTIMIZER = OptimizerSettings(
    learning_rate=8e-4, betas=(0.9, 0.98), warm_up=100, final_share=0.05
)


@dataclass(frozen=True, slots=True)
class AutoencoderSettings:
    """Stage 1.

    Each picture's latents get noise of up to `latent_noise` of their channel's deviation, as what a
    transformer draws is not exact; `structure` weighs faint details against errors in pixels.
    """

    seconds: float = 200.0
    batch: int = 64
    ema: float = 0.995
    kl_weight: float = 2e-4
    latent_noise: float = 0.3
    structure: float = 0.3
    optimizer: OptimizerSettings = _AUTOENCODER_OPTIMIZER

    def __post_init__(self) -> None:
        Length(seconds=self.seconds)


_FLOW_OPTIMIZER = OptimizerSettings(
    "muon", learning_rate=1.5e-3, betas=(0.9, 0.98), warm_up=150, final_share=0.03
)


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Stage 2: flow matching, text encoder and transformer together."""

    seconds: float = 850.0
    batch: int = 512
    ema: float = 0.999
    caption_drop: float = 0.1
    long_share: float = 0.1
    optimizer: OptimizerSettings = _FLOW_OPTIMIZER

    def __post_init__(self) -> None:
        Length(seconds=self.seconds)


_TWINFLOW_OBJECTIVE = Objective(
    enhanced_ratio=1.0,
    rectify=1.0,
    distance="l2",
    guide="start",
    distilled=("e2e", "any"),
    leap_share=0.5,
)
_TWINFLOW_OPTIMIZER = OptimizerSettings(
    "muon", learning_rate=5e-4, betas=(0.9, 0.95), warm_up=80, final_share=0.05
)


@dataclass(frozen=True, slots=True)
class TwinFlowSettings:
    """Stage 3: the transformer alone.

    Guidance comes from the frozen flow model of stage 2, and so do the targets of leaps, which this data has
    more of than one step's noise can tell apart.
    """

    seconds: float = 300.0
    batch: int = 512
    ema: float = 0.995
    long_share: float = 0.1
    objective: Objective = _TWINFLOW_OBJECTIVE
    optimizer: OptimizerSettings = _TWINFLOW_OPTIMIZER

    def __post_init__(self) -> None:
        Length(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Run:
    """One whole run.

    `compiled` turns torch.compile off for a try on a CPU, `captured` the recording of steps as CUDA graphs;
    every `save_seconds` a stage leaves a state to resume from; every `sample_seconds` it draws samples (0: at
    its end alone, as that takes GPU time). `start` is the folder of an exported checkpoint whose weights the
    first two stages begin with; fresh ones if it is empty.
    """

    world: World = field(default_factory=World)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    twinflow: TwinFlowSettings = field(default_factory=TwinFlowSettings)
    compiled: bool = True
    captured: bool = True
    start: str = ""
    seed: int = 0
    previews: int = 48
    save_seconds: float = 60.0
    sample_seconds: float = 0.0


Settings = TypeVar("Settings")


def changed(settings: Settings, assignments: Sequence[str]) -> Settings:
    """Settings with values replaced: each assignment reads "flow.optimizer.learning_rate=1e-3".

    Raises ValueError naming an assignment whose setting or value is not known.
    """
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        settings = _replaced(settings, path.split("."), partial(_parsed, text), assignment)
    return settings


def filled(settings: Settings, table: Mapping[str, Any], prefix: str = "") -> Settings:
    """Settings with the values of a TOML table; errors as those of :func:`changed`."""
    for name, value in table.items():
        if isinstance(value, Mapping) and is_dataclass(old := getattr(settings, name, None)):
            inner = filled(old, value, f"{prefix}{name}.")
            settings = replace(settings, **{name: inner})  # type: ignore[type-var]
        else:
            told = f"{prefix}{name}={value}"
            settings = _replaced(settings, [name], partial(_taken, value), told)
    return settings


def read_run(path: Path) -> Run:
    """Read a run from a TOML file; what it does not say has its default.

    Needs nothing but the standard library, as the machines that train this have little more than torch.
    Raises ValueError naming what is wrong.
    """
    table = tomllib.loads(path.read_text())
    table.pop("trainer", None)
    return filled(Run(), table)


def _replaced(settings: Any, path: Sequence[str], value_of: Any, told: str) -> Any:
    old = getattr(settings, path[0], None)
    if not is_dataclass(settings) or old is None or is_dataclass(old) != (len(path) > 1):
        raise ValueError(
            f"unknown setting {told!r}; write STAGE.NAME=VALUE, such as flow.batch=512 or "
            "twinflow.objective.rectify=0.5"
        )
    new = value_of(old, told) if len(path) == 1 else _replaced(old, path[1:], value_of, told)
    return replace(settings, **{path[0]: new})  # type: ignore[type-var]


def _parsed(text: str, old: Any, told: str) -> Any:
    """Text as a value like the old one."""
    kind = type(old)
    if kind is tuple:
        items = [item for item in text.strip("()[]").split(",") if item]
        return tuple(_parsed(item.strip(), old[0] if old else "", told) for item in items)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} in {told!r} is not a {kind.__name__}") from None


def _taken(value: Any, old: Any, told: str) -> Any:
    """A TOML value as one like the old."""
    kind = type(old)
    if kind is tuple and isinstance(value, list):
        return tuple(_taken(item, old[0] if old else "", told) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{value!r} in {told!r} is not a {kind.__name__}")
    return value


def rehearsal() -> Run:
    """Everything at its smallest, to see on a CPU in a minute or two that each stage runs."""
    run = Run(
        World(
            scenes=400, scene_variations=1, plain_variations=1, pool=64, refresh=4, refresh_steps=1, workers=2
        ),
        AutoencoderSettings(seconds=12.0, batch=4),
        FlowSettings(seconds=12.0, batch=8),
        TwinFlowSettings(seconds=15.0, batch=8),
        compiled=False,
        previews=2,
    )
    return changed(run, ["flow.optimizer.warm_up=2", "twinflow.optimizer.warm_up=2"])
