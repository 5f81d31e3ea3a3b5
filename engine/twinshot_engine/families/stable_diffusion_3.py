"""Stable Diffusion 3.5 and TwinFlow's: ``StableDiffusion3Pipeline`` folders.

Parts: ``text_encoder/`` and ``text_encoder_2/`` (CLIP), ``text_encoder_3/`` (T5; ``model_index.json`` may say
that there is none), a ``tokenizer`` for each, ``transformer/`` (TwinFlow adds ``time_text_embed_2``, which
stock diffusers ignores) and ``vae/`` (of which only the decoder is read). ``scheduler/`` is not used: times
come from :mod:`twinshot_engine.schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_engine.card import Card, Sizes
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.model import Family, Like, Model, Plan, Progress
from twinshot_engine.families.parts import (
    Part,
    advertised_card,
    check_channels,
    fill_parts,
    modules_of,
    part_bytes,
)
from twinshot_engine.families.passes import distinct_times, make_passes
from twinshot_engine.memory import check_memory, kl_decoder_bytes, stream_bytes, workspace_bytes
from twinshot_engine.precision import quantize_projections
from twinshot_engine.schedule import advance
from twinshot_engine.stored_form import stored_form, stored_shapes
from twinshot_engine.text import Caption, clip, t5
from twinshot_engine.text.clip import ClipEncoder
from twinshot_engine.text.joint_encoders import T5_TOKENS, JointEncoders
from twinshot_engine.text.joint_prompt import JointTokenizer
from twinshot_engine.text.t5 import T5Encoder
from twinshot_engine.transformer.joint_config import JointConfig
from twinshot_engine.transformer.joint_folding import (
    has_second_embedder,
    is_table,
    joint_slots,
    read_tables,
    table_shapes,
)
from twinshot_engine.transformer.joint_transformer import JointTransformer
from twinshot_engine.vae import KLConfig, KLDecoder, PixelDecoder, serving_decoder
from twinshot_engine.weights import Slot, StoredPart, same_names

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3Model(Model):
    """See :class:`~twinshot_engine.families.model.Model`.

    A caption is the text stream ``[1, L, dim]`` and the modulation of all passes ``[1, P, V * dim]``; what a
    pass adds is its number.
    """

    tokenizer: JointTokenizer
    text: JointEncoders
    transformer: JointTransformer
    decoder: PixelDecoder

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The three parts."""
        return {"text": self.text, "transformer": self.transformer, "decoder": self.decoder}

    def encode(self, ids: Tensor, length: Tensor) -> Caption:  # noqa: ARG002 -- padding is text here
        """Embed, and make the vectors of every block and pass."""
        embeddings, pooled = self.text(ids, self.tokenizer.clip_tokens)
        return self.transformer.embed_context(embeddings), self.transformer.modulation(pooled)

    def caption_like(self, tokens: int) -> tuple[Like, ...]:  # noqa: ARG002 -- there is one length
        """Text as wide as its stream, and modulation."""
        modulation, dim = self.transformer.modulation, self.transformer.config.dim
        length = self.tokenizer.clip_tokens + T5_TOKENS
        vectors = (1, len(modulation.times), len(modulation.is_scale) * dim)
        return Like((1, length, dim), self.placement.dtype), Like(vectors, self.placement.dtype)

    def denoise(
        self, latents: Tensor, fresh: Tensor, caption: Caption, modulation: Tensor, weights: Tensor
    ) -> Tensor:
        """Run one pass; ``modulation`` is its number, int64."""
        context, passes = caption
        packed = passes.index_select(1, modulation.reshape(1))
        velocity = self.transformer.predict(latents.to(self.placement.dtype), context, packed)
        return advance(latents, velocity.float(), fresh, weights)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode to bytes."""
        return self.decoder.decode_to_bytes(latents)


@dataclass(frozen=True, slots=True)
class _Found:
    """A checkpoint's parts on the meta device, compared with its headers."""

    text: JointEncoders
    transformer: JointTransformer
    decoder: KLDecoder
    parts: tuple[Part, ...]
    stored: StoredPart
    tokenizer: JointTokenizer
    card: Card
    workspace_bytes: int
    longest: int


def load_stable_diffusion_3(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, progress: Progress
) -> Model:
    """Load a checkpoint; see :class:`~twinshot_engine.families.model.FamilyLoader`."""
    found = _find(checkpoint, config, placement)
    check_memory(modules_of(found.parts), found.workspace_bytes, placement)
    fill_parts(found.parts, placement.device, progress)
    progress("tables", 1.0)
    times = distinct_times(config.steps)
    read_tables(found.stored, found.transformer, times, found.longest, placement.device)
    return StableDiffusion3Model(
        tokenizer=found.tokenizer,
        placement=placement,
        card=found.card,
        passes=make_passes(torch.arange(len(times), device=placement.device), config.steps),
        latent_channels=found.transformer.config.in_channels,
        downscale=found.decoder.config.downscale,
        text=found.text,
        transformer=found.transformer,
        decoder=serving_decoder(found.decoder, placement.dtype),
    )


def plan_stable_diffusion_3(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
    """Plan a checkpoint; see :class:`~twinshot_engine.families.model.FamilyPlanner`."""
    found = _find(checkpoint, config, placement)
    return Plan(
        part_bytes(found.parts),
        found.workspace_bytes,
        found.card.sizes.listed,
        str(found.card.sizes),
        found.tokenizer.max_tokens,
        found.transformer.config.second_time_embedder,
    )


def _find(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> _Found:
    """Build the parts from their configs and compare them with the files' headers; nothing is allocated."""
    transformer, stored = _find_transformer(checkpoint)
    encoders = _find_encoders(checkpoint)
    with torch.device("meta"):
        decoder = checkpoint.build("vae", lambda config: KLDecoder(KLConfig.from_dict(config)))
    parts = (
        *encoders,
        Part("transformer", transformer, stored, joint_slots(transformer)),
        Part("decoder", decoder, _find_decoder(checkpoint), same_names(decoder)),
    )
    for part in parts:
        part.check()
    replace(stored, ignored=lambda _name: True).check(*_table_form(transformer.config))
    text = _join(checkpoint, [part.module for part in encoders], transformer)
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
    return _Found(text, transformer, decoder, parts, stored, tokenizer, card, workspace, longest)


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
        quantize_projections(text, lambda name: not name.startswith("clips.0."))


def _find_transformer(checkpoint: Checkpoint) -> tuple[JointTransformer, StoredPart]:
    stored = checkpoint.part("transformer", ignored=is_table)
    second = has_second_embedder(stored)

    def build(config: Mapping[str, Any]) -> JointTransformer:
        return JointTransformer(JointConfig.from_dict({**config, "second_time_embedder": second}))

    with torch.device("meta"):
        return checkpoint.build("transformer", build), stored


def _find_encoders(checkpoint: Checkpoint) -> list[Part]:
    """The CLIPs and, if there is one, the T5."""
    found = []
    for name in CLIPS:
        checkpoint.build(name, clip.read_config)
        with torch.device("meta"):
            encoder = checkpoint.build(name, lambda config: ClipEncoder(clip.read_config(config)))
        found.append(Part(name, encoder, clip.find_encoder(checkpoint, name), clip.encoder_slots(encoder)))
    if not _has_t5(checkpoint):
        return found
    with torch.device("meta"):
        long = checkpoint.build(T5, lambda config: T5Encoder(t5.read_config(config)))
    return [*found, Part(T5, long, t5.find_encoder(checkpoint, T5), t5.encoder_slots(long))]


def _has_t5(checkpoint: Checkpoint) -> bool:
    """Whether the index has a third encoder; one that it names must be there, one without a class is not."""
    entry = checkpoint.read_json("model_index.json").get(T5, [T5])
    return bool(entry) and entry[0] is not None


def _join(checkpoint: Checkpoint, encoders: list[nn.Module], transformer: JointTransformer) -> JointEncoders:
    """Put the encoders side by side, if the transformer can read them."""
    first, second, *third = encoders
    config = transformer.config
    pooled = sum(each.config.projection_dim for each in (first, second))
    check_channels(checkpoint, "CLIPs' pool", pooled, "transformer", config.pooled_projection_dim)
    for long in third:
        check_channels(checkpoint, "T5", long.config.d_model, "transformer", config.joint_attention_dim)
    wide = sum(each.config.hidden_size for each in (first, second))
    if wide > config.joint_attention_dim:
        raise CheckpointError(
            f"In '{checkpoint.folder}' the CLIPs make {wide} channels, but the transformer reads at most "
            f"{config.joint_attention_dim}."
        )
    return JointEncoders((first, second), third[0] if third else None, config.joint_attention_dim)


def _find_decoder(checkpoint: Checkpoint) -> StoredPart:
    return checkpoint.part("vae", ignored=lambda name: name.startswith(KLDecoder.ENCODER_PARAMETERS))


def _table_form(config: JointConfig) -> tuple[nn.Module, dict[str, Slot]]:
    """What only serves to make tables, and its slots."""
    form = stored_form(table_shapes(config))
    return form, same_names(form)


def _load_tokenizer(checkpoint: Checkpoint, text: JointEncoders) -> JointTokenizer:
    names = ["tokenizer", "tokenizer_2"] + ([] if text.t5 is None else ["tokenizer_3"])
    encoders = [*text.clips] + ([] if text.t5 is None else [text.t5])
    loaded = [checkpoint.tokenizer(name, chat=False) for name in names]
    for name, tokenizer, encoder in zip(names, loaded, encoders, strict=True):
        if len(tokenizer) > encoder.config.vocab_size:
            raise CheckpointError(
                f"'{checkpoint.folder / name}' has {len(tokenizer)} tokens, "
                f"more than the {encoder.config.vocab_size} of its text encoder."
            )
        if tokenizer.pad_token_id is None:
            raise CheckpointError(f"'{checkpoint.folder / name}' has no padding token.")
    positions = min(clip.config.max_position_embeddings for clip in text.clips)
    length = min(loaded[0].model_max_length, positions)
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


def _transformer_form(config: Mapping[str, Any]) -> nn.Module:
    """What a checkpoint stores of a transformer, TwinFlow's second embedder included."""
    read = JointConfig.from_dict({**config, "second_time_embedder": True})
    transformer = JointTransformer(read)
    shapes = stored_shapes(transformer, joint_slots(transformer))
    return stored_form({**shapes, **table_shapes(read)})


def _clip_form(config: Mapping[str, Any]) -> nn.Module:
    encoder = ClipEncoder(clip.read_config(config))
    return stored_form(stored_shapes(encoder, clip.encoder_slots(encoder)))


def _t5_form(config: Mapping[str, Any]) -> nn.Module:
    encoder = T5Encoder(t5.read_config(config))
    return stored_form(stored_shapes(encoder, t5.encoder_slots(encoder)))


STABLE_DIFFUSION_3 = Family(
    load_stable_diffusion_3,
    plan_stable_diffusion_3,
    {
        "text_encoder": _clip_form,
        "text_encoder_2": _clip_form,
        "text_encoder_3": _t5_form,
        "transformer": _transformer_form,
        "vae": lambda config: KLDecoder(KLConfig.from_dict(config)),
    },
)
"""``StableDiffusion3Pipeline``."""
