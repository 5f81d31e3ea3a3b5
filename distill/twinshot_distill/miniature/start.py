"""Begin from an exported checkpoint instead of from nothing: its shapes and drawings are already learned.

The tokenizer may be another one, for a larger vocabulary or a further language: a token's embedding is then
the mean of the old tokens that spell it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from twinshot_distill.errors import TrainingError
from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_engine.vae.kl import AutoencoderKL

_EMBEDDINGS = "embed_tokens.weight"


def start_from(
    folder: Path, autoencoder: AutoencoderKL, denoiser: Denoiser, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Load an exported checkpoint, or what the first two stages of a run have left in its folder.

    Raises TrainingError where a part is missing or of another shape.
    """
    if (folder / "model_index.json").is_file():
        start_autoencoder(autoencoder, folder)
        start_denoiser(denoiser, tokenizer, folder)
        return
    parts: dict[str, nn.Module] = {"autoencoder": autoencoder, "flow": denoiser}
    for name, module in parts.items():
        path = folder / f"{name}.safetensors"
        _load(module, _read(path), path)


def start_autoencoder(model: AutoencoderKL, folder: Path) -> None:
    """Load a checkpoint's autoencoder. Raises TrainingError where it is missing or of another shape."""
    _load(model, _read(folder / "vae" / "diffusion_pytorch_model.safetensors"), folder / "vae")


def start_denoiser(model: Denoiser, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Load a checkpoint's transformer and text encoder, for the words of a tokenizer.

    Raises TrainingError where a part is missing or of another shape.
    """
    _load(
        model.transformer,
        _read(folder / "transformer" / "diffusion_pytorch_model.safetensors"),
        folder / "transformer",
    )
    text = _read(folder / "text_encoder" / "model.safetensors")
    old = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    text[_EMBEDDINGS] = embeddings_for(tokenizer, old, text[_EMBEDDINGS].float())
    # The layout has a last layer and norm that generation never reads.
    known = model.text.state_dict().keys()
    _load(
        model.text, {name: tensor for name, tensor in text.items() if name in known}, folder / "text_encoder"
    )


def embeddings_for(new: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast, rows: Tensor) -> Tensor:
    """Embeddings [V', D] of a tokenizer's tokens from those [V, D] of another one."""
    known = old.get_vocab()
    moved = torch.empty(len(new), rows.shape[1])
    for token, index in new.get_vocab().items():
        parts = [known[token]] if token in known else _spelled(token, old)
        moved[index] = rows[parts].mean(0) if parts else rows.mean(0)
    return moved


def _spelled(token: str, old: PreTrainedTokenizerFast) -> list[int]:
    """The old tokens that a new one consists of; each letter of a byte-level token stands for a byte."""
    pieces = old.backend_tokenizer.model.tokenize(token)
    return [piece.id for piece in pieces]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"'{path}' cannot be read: {error}; start from an exported checkpoint, or from a run of "
            "miniature.train whose flow stage is finished."
        ) from error


def _load(module: nn.Module, state: dict[str, Tensor], place: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(f"'{place}' does not fit this trainer's model: {error}") from error
