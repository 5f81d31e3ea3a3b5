"""What a ``StableDiffusion3Pipeline`` folder holds, on the meta device and compared with its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from twinshot_engine.card import Card, Sizes
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.parts import Part, advertised_card, check_channels, check_parts
from twinshot_engine.memory import kl_decoder_bytes, stream_bytes, workspace_bytes
from twinshot_engine.precision import quantize_projections
from twinshot_engine.stored_form import stored_form
from twinshot_engine.text import clip, t5
from twinshot_engine.text.clip import ClipConfig, ClipEncoder
from twinshot_engine.text.joint_encoders import T5_TOKENS, JointEncoders
from twinshot_engine.text.joint_prompt import JointTokenizer
from twinshot_engine.text.t5 import T5Encoder
from twinshot_engine.transformer.joint_config import JointConfig
from twinshot_engine.transformer.joint_folding import (
    has_second_embedder,
    is_table,
    joint_slots,
    table_shapes,
)
from twinshot_engine.transformer.joint_transformer import JointTransformer
from twinshot_engine.vae import KLConfig, KLDecoder
from twinshot_engine.weights import Slot, StoredPart, same_names

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's parts on the meta device, compared with its headers.

    Attributes:
        text: the encoders.
        transformer: lacks its tables, see :func:`~twinshot_engine.transformer.joint_folding.read_tables`.
        decoder: in fp32.
        parts: all of them, to be filled.
        stored: the transformer's tensors.
        tokenizer: of all encoders.
        card: with the advertised sizes.
        workspace_bytes: estimate at the largest size.
        longest: patches along the longest side that a picture may have.
    """

    text: JointEncoders
    transformer: JointTransformer
    decoder: KLDecoder
    parts: tuple[Part, ...]
    stored: StoredPart
    tokenizer: JointTokenizer
    card: Card
    workspace_bytes: int
    longest: int


def find(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Found:
    """Build the parts from their configs and compare them with the files' headers; nothing is allocated."""
    transformer, stored = _find_transformer(checkpoint)
    text, encoders = _find_encoders(checkpoint, transformer.config)
    with torch.device("meta"):
        decoder = checkpoint.build("vae", lambda config: KLDecoder(KLConfig.from_dict(config)))
    parts = (
        *encoders,
        Part("transformer", transformer, stored, joint_slots(transformer)),
        Part("decoder", decoder, _find_decoder(checkpoint), same_names(decoder)),
    )
    check_parts(parts)
    replace(stored, ignored=lambda _name: True).check(*_table_form(transformer.config))
    check_channels(
        checkpoint, "transformer", transformer.config.in_channels, "vae", decoder.config.latent_channels
    )
    place(text, transformer, placement)
    tokenizer = _load_tokenizer(checkpoint, text)
    patch = decoder.config.downscale * transformer.config.patch_size
    card = advertised_card(
        checkpoint,
        config,
        placement,
        multiple=patch,
        longest_side=transformer.config.pos_embed_max_size * patch,
    )
    workspace = _workspace(transformer, decoder, tokenizer, card, config)
    longest = _longest_side(card.sizes) // patch
    return Found(text, transformer, decoder, parts, stored, tokenizer, card, workspace, longest)


def place(text: JointEncoders, transformer: JointTransformer, placement: Placement) -> None:
    """Give modules on the meta device the number formats of ``placement``.

    All of the transformer's projections are fp8, adaLN's 1.5 GB included; they are read once a prompt. The
    first CLIP is too small to gain from fp8. The decoder stays fp32 until its weights have been folded.
    """
    for module in (text, transformer):
        module.to(placement.dtype)  # before anything becomes fp8, which this would undo
    if placement.precision == "fp8":
        quantize_projections(transformer, lambda _name: True)
    if placement.text_fp8:
        quantize_projections(text, lambda name: not name.startswith("first."))


def _find_transformer(checkpoint: Checkpoint) -> tuple[JointTransformer, StoredPart]:
    stored = checkpoint.part("transformer", ignored=is_table)
    second = has_second_embedder(stored)

    def build(config: Mapping[str, Any]) -> JointTransformer:
        return JointTransformer(JointConfig.from_dict({**config, "second_time_embedder": second}))

    with torch.device("meta"):
        return checkpoint.build("transformer", build), stored


def _find_encoders(checkpoint: Checkpoint, config: JointConfig) -> tuple[JointEncoders, list[Part]]:
    """The CLIPs and, if there is one, the T5; together, and as parts to be filled."""
    first, second = (_build_clip(checkpoint, name) for name in CLIPS)
    long = _build_t5(checkpoint) if _has_t5(checkpoint) else None
    parts = [
        Part(name, each, clip.find_encoder(checkpoint, name), clip.encoder_slots(each))
        for name, each in zip(CLIPS, (first, second), strict=True)
    ]
    if long is not None:
        stored = t5.find_encoder(checkpoint, T5)
        parts.append(Part(T5, long, stored, t5.encoder_slots(long)))
    _check_widths(checkpoint, (first.config, second.config), long, config)
    return JointEncoders(first, second, long, config.joint_attention_dim), parts


def _build_clip(checkpoint: Checkpoint, name: str) -> ClipEncoder:
    with torch.device("meta"):
        return checkpoint.build(name, lambda config: ClipEncoder(clip.read_config(config)))


def _build_t5(checkpoint: Checkpoint) -> T5Encoder:
    with torch.device("meta"):
        return checkpoint.build(T5, lambda config: T5Encoder(t5.read_config(config)))


def _has_t5(checkpoint: Checkpoint) -> bool:
    """Whether the index has a third encoder; one that it names must be there, one without a class is not."""
    entry = checkpoint.read_json("model_index.json").get(T5, [T5])
    return bool(entry) and entry[0] is not None


def _check_widths(
    checkpoint: Checkpoint, clips: tuple[ClipConfig, ...], long: T5Encoder | None, config: JointConfig
) -> None:
    """Raise CheckpointError unless the transformer can read what the encoders make."""
    pooled, wide = sum(each.projection_dim for each in clips), sum(each.hidden_size for each in clips)
    check_channels(checkpoint, "CLIPs' pool", pooled, "transformer", config.pooled_projection_dim)
    if long is not None:
        check_channels(checkpoint, "T5", long.config.d_model, "transformer", config.joint_attention_dim)
    if wide > config.joint_attention_dim:
        raise CheckpointError(
            f"In '{checkpoint.folder}' the CLIPs make {wide} channels, but the transformer reads at most "
            f"{config.joint_attention_dim}."
        )


def _find_decoder(checkpoint: Checkpoint) -> StoredPart:
    return checkpoint.part("vae", ignored=lambda name: name.startswith(KLDecoder.ENCODER_PARAMETERS))


def _table_form(config: JointConfig) -> tuple[nn.Module, dict[str, Slot]]:
    """What only serves to make tables, and its slots."""
    form = stored_form(table_shapes(config))
    return form, same_names(form)


def _load_tokenizer(checkpoint: Checkpoint, text: JointEncoders) -> JointTokenizer:
    encoders = {"tokenizer": text.first, "tokenizer_2": text.second, "tokenizer_3": text.t5}
    sizes = {name: each.config.vocab_size for name, each in encoders.items() if each is not None}
    loaded = [checkpoint.tokenizer(name, chat=False) for name in sizes]
    for (name, size), tokenizer in zip(sizes.items(), loaded, strict=True):
        if len(tokenizer) > size:
            raise CheckpointError(
                f"'{checkpoint.home(name) / name}' has {len(tokenizer)} tokens, "
                f"more than the {size} of its text encoder."
            )
        if tokenizer.pad_token_id is None:
            raise CheckpointError(f"'{checkpoint.home(name) / name}' has no padding token.")
    positions = [each.config.max_position_embeddings for each in (text.first, text.second)]
    length = min(loaded[0].model_max_length, *positions)
    return JointTokenizer(tuple(loaded[:2]), loaded[2] if text.t5 else None, length, T5_TOKENS)


def _longest_side(sizes: Sizes) -> int:
    """Pixels along the longest side that a picture may have."""
    return max(*(side for size in sizes.listed for side in size), sizes.largest if sizes.multiple else 0)


def _workspace(
    transformer: JointTransformer,
    decoder: KLDecoder,
    tokenizer: JointTokenizer,
    card: Card,
    config: EngineConfig,
) -> int:
    """Estimate the bytes of intermediate results at the largest size."""
    dim = transformer.config.dim
    pixels = max(width * height for width, height in card.sizes.listed)
    patches = pixels // (decoder.config.downscale * transformer.config.patch_size) ** 2
    return workspace_bytes(
        stream_bytes(patches + tokenizer.clip_tokens + T5_TOKENS, dim, 4 * dim),
        kl_decoder_bytes(pixels, decoder.config.block_out_channels),
        config,
    )
