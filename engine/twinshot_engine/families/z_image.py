"""Z-Image and TwinFlow-Z-Image: ``ZImagePipeline`` folders.

Parts: ``text_encoder/`` (Qwen3, with or without its language-model head), ``tokenizer/``, ``transformer/``
(TwinFlow adds ``t_embedder_2``, which stock diffusers ignores) and ``vae/`` (of which only the decoder is
read). ``scheduler/`` is not used: times come from :mod:`twinshot_engine.schedule`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format
from transformers import AutoTokenizer

from twinshot_engine.card import read_card
from twinshot_engine.checkpoint import Checkpoint, tell
from twinshot_engine.config import Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.model import Model, Progress
from twinshot_engine.text import TextEncoder
from twinshot_engine.text.qwen3 import build_model, is_used, place_model
from twinshot_engine.transformer import SingleStreamConfig, SingleStreamTransformer
from twinshot_engine.vae import KLConfig, KLDecoder
from twinshot_engine.vae.folding import fold_upsamplers
from twinshot_engine.weights import load_weights, weight_names

_SECOND_EMBEDDER = "t_embedder_2."


def load_z_image(checkpoint: Checkpoint, placement: Placement, progress: Progress) -> Model:
    """Load a Z-Image checkpoint; see :class:`~twinshot_engine.families.model.FamilyLoader`."""
    progress("text encoder", 0.1)
    text = _load_text(checkpoint, placement)
    progress("transformer", 0.4)
    transformer = _load_transformer(checkpoint, placement)
    progress("decoder", 0.9)
    decoder = _load_decoder(checkpoint, placement)
    _check_fit(checkpoint, text, transformer, decoder)
    text.max_tokens = min(text.max_tokens, transformer.config.max_caption_tokens)
    pixels = decoder.config.downscale * transformer.config.patch_size
    card = read_card(checkpoint, multiple=pixels, longest_side=min(transformer.config.axes_lens[1:]) * pixels)
    return Model(text, transformer, decoder, placement, card)


def _load_text(checkpoint: Checkpoint, placement: Placement) -> TextEncoder:
    config = checkpoint.read_json("text_encoder", "config.json")
    with torch.device("meta"):
        model = checkpoint.build("text_encoder", build_model)
    load_weights(
        model,
        checkpoint.folder / "text_encoder",
        placement,
        keep=lambda name: is_used(name, config),
        rename=lambda name: name.removeprefix("model."),
    )
    return TextEncoder(
        place_model(model, placement.device), _load_tokenizer(checkpoint, model.config.vocab_size)
    )


def _load_tokenizer(checkpoint: Checkpoint, vocabulary_size: int) -> Any:
    folder = checkpoint.folder / "tokenizer"
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is missing.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise CheckpointError(f"'{folder}' holds no usable tokenizer: {tell(error)}.") from error
    if not getattr(tokenizer, "chat_template", None):
        raise CheckpointError(f"'{folder}' has no chat template.")
    if len(tokenizer) > vocabulary_size:
        raise CheckpointError(
            f"'{folder}' has {len(tokenizer)} tokens, more than the {vocabulary_size} of the text encoder."
        )
    return tokenizer


def _load_transformer(checkpoint: Checkpoint, placement: Placement) -> SingleStreamTransformer:
    folder = checkpoint.folder / "transformer"
    second = any(name.startswith(_SECOND_EMBEDDER) for name in weight_names(folder))

    def build(config: Mapping[str, Any]) -> SingleStreamTransformer:
        return SingleStreamTransformer(
            SingleStreamConfig.from_dict({**config, "second_time_embedder": second})
        )

    with torch.device("meta"):
        transformer = checkpoint.build("transformer", build)
    load_weights(transformer, folder, placement)
    return transformer


def _load_decoder(checkpoint: Checkpoint, placement: Placement) -> KLDecoder:
    with torch.device("meta"):
        decoder = checkpoint.build("vae", lambda config: KLDecoder(KLConfig.from_dict(config)))
    load_weights(
        decoder,
        checkpoint.folder / "vae",
        placement,
        keep=lambda name: not name.startswith(KLDecoder.ENCODER_PARAMETERS),
    )
    if placement.device.type == "cpu":  # measured here alone; see the module
        fold_upsamplers(decoder.decoder)
    convert_conv2d_weight_memory_format(decoder, torch.channels_last)
    return decoder


def _check_fit(
    checkpoint: Checkpoint, text: TextEncoder, transformer: SingleStreamTransformer, decoder: KLDecoder
) -> None:
    made, read = text.model.config.hidden_size, transformer.config.cap_feat_dim
    if made != read:
        raise CheckpointError(
            f"In '{checkpoint.folder}' the text encoder makes {made} channels, "
            f"but the transformer reads {read}."
        )
    latents, decoded = transformer.config.in_channels, decoder.config.latent_channels
    if latents != decoded:
        raise CheckpointError(
            f"In '{checkpoint.folder}' the transformer makes {latents} channels, but the vae reads {decoded}."
        )
