"""Write a trained miniature as a plain diffusers folder, the layout of TwinFlow-Z-Image-Turbo.

Stock `ZImagePipeline.from_pretrained` loads it (it ignores `t_embedder_2`); weights are bf16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_distill.errors import TrainingError
from twinshot_distill.miniature.card import describe
from twinshot_distill.miniature.configuration import SCHEDULER, TEXT_ENCODER, TRANSFORMER, VAE
from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_distill.miniature.tokenizer import build_tokenizer
from twinshot_distill.tensor_files import save_tensors
from twinshot_engine.vae.kl import AutoencoderKL

_MODEL_INDEX: dict[str, Any] = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _json(path: Path, content: dict[str, Any], indent: int = 2, colon: str = ": ") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=indent, separators=(",", colon), ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def _weights(path: Path, state: dict[str, Tensor]) -> None:
    tensors = {name: tensor.detach().cpu().bfloat16().contiguous() for name, tensor in state.items()}
    save_tensors(tensors, path, {"format": "pt"})


def _text_state(text: nn.Module) -> dict[str, Tensor]:
    """The trained layers, and the last layer and norm that the layout has but generation never reads."""
    state = dict(text.state_dict())
    unused = TEXT_ENCODER["num_hidden_layers"] - 1
    for name in [key for key in state if key.startswith("layers.0.")]:
        state[name.replace("layers.0.", f"layers.{unused}.")] = torch.zeros_like(state[name])
    return state | {"norm.weight": torch.ones(TEXT_ENCODER["hidden_size"])}


def export(folder: Path, autoencoder: AutoencoderKL, denoiser: Denoiser) -> None:
    """Write the checkpoint; existing files of the same names are replaced.

    Raises:
        TrainingError: the disk does not take it.
    """
    try:
        _json(folder / "model_index.json", _MODEL_INDEX)
        _json(folder / "twinshot.json", describe(), 0, ":")
        _json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
        build_tokenizer(folder / "tokenizer")
        for name, config, file, state in (
            ("transformer", TRANSFORMER, "diffusion_pytorch_model", denoiser.transformer.state_dict()),
            ("text_encoder", TEXT_ENCODER, "model", _text_state(denoiser.text)),
            ("vae", VAE, "diffusion_pytorch_model", autoencoder.state_dict()),
        ):
            _json(folder / name / "config.json", config)
            _weights(folder / name / f"{file}.safetensors", state)
    except OSError as error:
        raise TrainingError(
            f"'{folder}' cannot be written: {error}; what was trained is kept, and the same command goes on."
        ) from error
