"""Where the comparison starts: autoencoder and flow model of a run's folder, or of an exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from twinshot_distill.errors import TrainingError
from twinshot_distill.miniature.autoencoder import new_autoencoder
from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_engine.vae.kl import AutoencoderKL

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_start(folder: Path) -> tuple[AutoencoderKL, Denoiser]:
    """Read both models, on the CPU, in fp32.

    Args:
        folder: a run of `miniature.train` that has finished its flow stage, or a folder that it exported.

    Raises:
        TrainingError: it is neither, or its weights do not fit.
    """
    autoencoder, denoiser = new_autoencoder(), Denoiser()
    if (folder / "model_index.json").is_file():
        _load(autoencoder, folder / "vae" / _WEIGHTS)
        _load(denoiser.transformer, folder / "transformer" / _WEIGHTS)
        # An export also has a last layer that is never read.
        _load(denoiser.text, folder / "text_encoder" / "model.safetensors", more=True)
    else:
        _load(autoencoder, folder / "autoencoder.safetensors")
        _load(denoiser, folder / "flow.safetensors")
    return autoencoder, denoiser


def _load(module: nn.Module, path: Path, *, more: bool = False) -> None:
    try:
        state = load_file(path)
        module.load_state_dict(_needed(module, state) if more else state)
    except FileNotFoundError as error:
        raise TrainingError(
            f"'{path}' does not exist: give a folder in which 'python -m twinshot_distill.miniature.train' "
            "has finished its flow stage, or the checkpoint of a flow model that it exported."
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrainingError(f"'{path}' does not fit this miniature: {reason}") from error


def _needed(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = module.state_dict().keys()
    return {name: tensor for name, tensor in state.items() if name in names}


def check_tokens(folder: Path, tokenizer: Path) -> None:
    """Compare the tokenizer in the start's folder, if it has one, with that in another folder.

    Raises:
        TrainingError: they differ.
    """
    own, other = (each / "tokenizer.json" for each in (folder / "tokenizer", tokenizer))
    if own.is_file() and own.read_bytes() != other.read_bytes():
        raise TrainingError(f"'{own}' is not the tokenizer of this world: the model was trained on another.")
