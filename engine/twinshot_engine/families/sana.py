"""SANA, TwinFlow-SANA and SANA-Sprint: ``SanaPipeline`` and ``SanaSprintPipeline`` folders.

Parts: ``text_encoder/`` (Gemma 2, with or without its language-model head), ``tokenizer/``, ``transformer/``
(TwinFlow adds ``time_embed_2``, which stock diffusers ignores) and ``vae/`` (of which only the decoder is
read). ``scheduler/`` is not used: times come from :mod:`twinshot_engine.schedule`, Sprint's along its own
trigonometric schedule, with the guidance that its pipeline is served at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twinshot_engine.card import Card
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.model import Adaptable, Family, Folded, Like, Model, Plan, Progress
from twinshot_engine.families.parts import (
    Part,
    advertised_card,
    check_channels,
    check_parts,
    fill_parts,
    modules_of,
    part_bytes,
)
from twinshot_engine.families.passes import distinct_times, make_passes
from twinshot_engine.families.repacked import Repack
from twinshot_engine.memory import (
    check_memory,
    deep_compression_bytes,
    stream_bytes,
    workspace_bytes,
)
from twinshot_engine.precision import quantize_projections
from twinshot_engine.schedule import Schedule, Steps, advance, schedule_for, trigonometric
from twinshot_engine.text import Caption
from twinshot_engine.text.gemma2 import Gemma2Encoder, build_model, encoder_slots, read_config
from twinshot_engine.text.instruction import InstructedTokenizer, instructed
from twinshot_engine.transformer.linear_attention import LinearAttentionTransformer
from twinshot_engine.transformer.linear_attention_config import LinearAttentionConfig
from twinshot_engine.transformer.linear_attention_folding import (
    SECOND_EMBEDDER,
    folded_slots,
    is_time,
    open_form,
    read_times,
    time_slots,
)
from twinshot_engine.transformer.linear_attention_stored import StoredTransformer
from twinshot_engine.vae.deep_compression import DeepCompressionDecoder
from twinshot_engine.vae.deep_compression_config import DeepCompressionConfig
from twinshot_engine.vae.deep_compression_stored import StoredDeepCompression
from twinshot_engine.weights import StoredPart, same_names

LONGEST_SIDE = 4096
"""SANA has no positions that would end; this is the largest size it was published for."""

SPRINT_GUIDANCE = 4.5
"""The guidance scale that ``SanaSprintPipeline`` embeds unless told otherwise."""


class _Variant(NamedTuple):
    """What differs between the pipelines."""

    schedule: Callable[[int], Schedule]
    guidance: float | None


_FLOW = _Variant(schedule_for, None)
_SPRINT = _Variant(trigonometric, SPRINT_GUIDANCE)


def is_fp8(_name: str) -> bool:
    """Say which projections of the transformer are fp8: all, as all gain by half their weight's bytes."""
    return True


@dataclass(frozen=True, kw_only=True)
class SanaModel(Model):
    """See :class:`~twinshot_engine.families.model.Model`.

    A caption is the keys and values of all blocks ``[1, L, blocks, 2, dim]``, and how many of L are real,
    ``[1]`` int32.
    """

    text: Gemma2Encoder
    transformer: LinearAttentionTransformer
    dropped: int

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The three parts."""
        return {"text": self.text, "transformer": self.transformer, "decoder": self.decoder}

    def negative_ids(self) -> list[int]:
        """Of the instruction alone: the pipeline has none before a negative prompt.

        So nothing but the first token's state is left, as of an empty text, which is that one token.
        """
        return self.tokenizer.encode(self.negative_prompt)[: self.dropped]

    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Embed; the first token's state, which all prompts share, comes before the prompt's."""
        first = self.text.first_state.expand(ids.shape[0], -1, -1)
        states = torch.cat((first, self.text(ids)[:, self.dropped :]), dim=1)
        return self.transformer.read_caption(states), (length - (self.dropped - 1)).to(torch.int32)

    def caption_like(self, tokens: int) -> tuple[Like, ...]:
        """Keys, values, and a count."""
        config = self.transformer.config
        shape = (1, tokens - self.dropped + 1, config.num_layers, 2, config.dim)
        return Like(shape, self.placement.dtype), Like((1,), torch.int32)

    def denoise(
        self, latents: Tensor, fresh: Tensor, caption: Caption, modulation: Tensor, weights: Tensor
    ) -> Tensor:
        """Run one pass; ``modulation`` is a row of the transformer's table."""
        key_value, lengths = caption
        prediction = self.transformer.predict(latents, key_value, lengths, modulation)
        return advance(latents, prediction.float(), fresh, weights)


@dataclass(frozen=True, slots=True)
class _Found:
    """A checkpoint's parts on the meta device, compared with its headers."""

    text: Gemma2Encoder
    transformer: LinearAttentionTransformer
    decoder: StoredDeepCompression
    parts: tuple[Part, ...]
    unfolded: StoredPart
    tokenizer: InstructedTokenizer
    card: Card
    workspace_bytes: int


def load_sana(
    checkpoint: Checkpoint,
    config: EngineConfig,
    placement: Placement,
    progress: Progress,
    *,
    variant: _Variant,
) -> Model:
    """Load a SANA checkpoint; see :class:`~twinshot_engine.families.model.FamilyLoader`."""
    found = _find(checkpoint, config, placement, variant=variant)
    check_memory(modules_of(found.parts), found.workspace_bytes, placement)
    fill_parts(found.parts, placement.device, progress)
    progress("modulation table", 1.0)
    transformer, tokenizer = found.transformer, found.tokenizer
    found.text.fold(torch.tensor([tokenizer.prefix], device=placement.device))

    def fold(stored: StoredPart) -> Folded:
        times = distinct_times(config.steps, variant.schedule)
        table = read_times(stored, transformer.config, times, variant.guidance, placement.device)
        return Folded(make_passes(table, config.steps, variant.schedule))

    slots, folded = folded_slots(transformer), fold(found.unfolded)
    return SanaModel(
        tokenizer=tokenizer,
        placement=placement,
        card=found.card,
        passes=folded.passes,
        latent_channels=transformer.config.in_channels,
        downscale=found.decoder.config.downscale,
        text=found.text,
        transformer=transformer,
        decoder=DeepCompressionDecoder(found.decoder, placement.dtype),
        dropped=tokenizer.dropped,
        adaptable=Adaptable(transformer, found.unfolded, slots, folded, fold, SANA_REPACK.translate),
    )


def plan_sana(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, *, variant: _Variant
) -> Plan:
    """Plan a SANA checkpoint; see :class:`~twinshot_engine.families.model.FamilyPlanner`."""
    found = _find(checkpoint, config, placement, variant=variant)
    return Plan(
        part_bytes(found.parts, placement.device),
        found.workspace_bytes,
        found.card.sizes.listed,
        str(found.card.sizes),
        found.tokenizer.max_tokens,
        variant.guidance is not None or found.transformer.config.second_time_embedder,
    )


def place(text: Gemma2Encoder, transformer: nn.Module, placement: Placement) -> None:
    """Give modules on the meta device the number formats of ``placement``.

    The decoder stays fp32 until its weights have been folded.
    """
    for module in (text, transformer):
        module.to(placement.dtype)  # before anything becomes fp8, which this would undo
    text.widen_norms()
    if placement.precision == "fp8":
        quantize_projections(transformer, is_fp8)
    if placement.text_fp8:
        quantize_projections(text, lambda _name: True)


def _find(checkpoint: Checkpoint, config: EngineConfig, placement: Placement, *, variant: _Variant) -> _Found:
    """Build the parts from their configs and compare them with the files' headers; nothing is allocated."""
    modes = [f"{each.mode}:{each}" for each in config.steps if isinstance(each, Steps) and each.mode]
    if modes and variant is _SPRINT:
        raise CheckpointError(f"steps {modes[0]!r}: SANA-Sprint has its own schedule; name the count alone.")
    stored = checkpoint.part("transformer", ignored=is_time)
    with torch.device("meta"):
        text = checkpoint.build("text_encoder", lambda config: Gemma2Encoder(read_config(config)))
        transformer = _build_transformer(checkpoint, stored, variant)
        decoder = checkpoint.build("vae", _build_decoder)
    parts = (
        Part("text encoder", text, _find_encoder(checkpoint), encoder_slots(text)),
        Part("transformer", transformer, stored, folded_slots(transformer)),
        Part("decoder", decoder, _find_decoder(checkpoint), same_names(decoder)),
    )
    check_parts(parts)
    _check_time(stored, transformer)
    _check_widths(checkpoint, text, transformer, decoder)
    place(text, transformer, placement)
    tokenizer = _load_tokenizer(checkpoint, text)
    pixels = decoder.config.downscale
    card = advertised_card(checkpoint, config, placement, multiple=pixels, longest_side=LONGEST_SIDE)
    workspace = _workspace(transformer, decoder, card, config)
    return _Found(text, transformer, decoder, parts, stored, tokenizer, card, workspace)


def _build_transformer(
    checkpoint: Checkpoint, stored: StoredPart, variant: _Variant
) -> LinearAttentionTransformer:
    second = any(name.startswith(SECOND_EMBEDDER) for name in stored.headers)

    def build(config: Mapping[str, Any]) -> LinearAttentionTransformer:
        read = LinearAttentionConfig.from_dict({**config, "second_time_embedder": second})
        if read.guidance_embeds != (variant.guidance is not None):
            raise ValueError(f"guidance_embeds {read.guidance_embeds} is not that of a {checkpoint.family}")
        return LinearAttentionTransformer(read)

    return checkpoint.build("transformer", build)


def _check_time(stored: StoredPart, transformer: LinearAttentionTransformer) -> None:
    """Compare what only serves to make the table."""
    unfolded = open_form(transformer.config)
    replace(stored, ignored=lambda _name: True).check(unfolded, time_slots(unfolded))


def _check_widths(
    checkpoint: Checkpoint,
    text: Gemma2Encoder,
    transformer: LinearAttentionTransformer,
    decoder: StoredDeepCompression,
) -> None:
    sizes = transformer.config
    hidden, latent = text.config.hidden_size, decoder.config.latent_channels
    check_channels(checkpoint, "text encoder", hidden, "transformer", sizes.caption_channels)
    check_channels(checkpoint, "transformer", sizes.in_channels, "vae", latent)


def _build_decoder(config: Mapping[str, Any]) -> StoredDeepCompression:
    return StoredDeepCompression(DeepCompressionConfig.from_dict(config))


def _find_encoder(checkpoint: Checkpoint) -> StoredPart:
    return checkpoint.part(
        "text_encoder",
        rename=lambda name: name.removeprefix("model."),
        ignored=lambda name: name.startswith("lm_head."),
    )


def _find_decoder(checkpoint: Checkpoint) -> StoredPart:
    encoder = StoredDeepCompression.ENCODER_PARAMETERS
    return checkpoint.part("vae", ignored=lambda name: name.startswith(encoder))


def _load_tokenizer(checkpoint: Checkpoint, text: Gemma2Encoder) -> InstructedTokenizer:
    tokenizer = checkpoint.tokenizer(chat=False)
    vocabulary = text.config.vocab_size
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"'{checkpoint.home('tokenizer')}/tokenizer' has {len(tokenizer)} tokens, "
            f"more than the {vocabulary} of the text encoder."
        )
    return instructed(tokenizer)


def _workspace(
    transformer: LinearAttentionTransformer, decoder: StoredDeepCompression, card: Card, config: EngineConfig
) -> int:
    """Estimate the bytes of intermediate results at the largest size."""
    pixels = max(width * height for width, height in card.sizes.listed)
    sizes = transformer.config
    return workspace_bytes(
        stream_bytes(pixels // decoder.config.downscale**2, sizes.dim, sizes.hidden),
        deep_compression_bytes(pixels, decoder.config.block_out_channels),
        config,
    )


SANA_REPACK = Repack(
    frozenset(
        ("caption_norm.weight", "patch_embed.proj.weight", "transformer_blocks.0.ff.conv_depth.weight")
    ),
    lambda headers: headers,
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
)
"""Transformer-only files of ``SanaPipeline``, under diffusers' names."""

SANA_SPRINT_REPACK = Repack(
    SANA_REPACK.marks | {"time_embed.guidance_embedder.linear_1.weight"},
    SANA_REPACK.translate,
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
)
"""Likewise of ``SanaSprintPipeline``, which has all of SANA's names and an embedder of guidance."""


def _family(variant: _Variant) -> Family:
    return Family(
        partial(load_sana, variant=variant),
        partial(plan_sana, variant=variant),
        {
            "text_encoder": build_model,
            "transformer": lambda config: StoredTransformer(LinearAttentionConfig.from_dict(config)),
            "vae": _build_decoder,
        },
        SANA_REPACK if variant.guidance is None else SANA_SPRINT_REPACK,
    )


SANA = _family(_FLOW)
"""``SanaPipeline``."""

SANA_SPRINT = _family(_SPRINT)
"""``SanaSprintPipeline``."""
