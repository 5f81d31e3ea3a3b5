"""Z-Image and TwinFlow-Z-Image: ``ZImagePipeline`` folders.

Parts: ``text_encoder/`` (Qwen3, with or without its language-model head), ``tokenizer/``, ``transformer/``
(TwinFlow adds ``t_embedder_2``, which stock diffusers ignores) and ``vae/`` (of which only the decoder is
read). ``scheduler/`` is not used: times come from :mod:`twinshot_engine.schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
from twinshot_engine.families.z_image_keys import Z_IMAGE_REPACK
from twinshot_engine.memory import check_memory, kl_decoder_bytes, stream_bytes, workspace_bytes
from twinshot_engine.precision import quantize_projections
from twinshot_engine.schedule import advance
from twinshot_engine.text import Caption, ChatTokenizer
from twinshot_engine.text.qwen3 import Qwen3Encoder, build_model, encoder_slots, find_encoder, read_config
from twinshot_engine.transformer import FoldedTransformer, SingleStreamConfig, SingleStreamTransformer
from twinshot_engine.transformer.config import TOKEN_MULTIPLE
from twinshot_engine.transformer.folding import (
    folded_slots,
    has_second_embedder,
    is_time,
    open_form,
    read_times,
    time_slots,
)
from twinshot_engine.vae import KLConfig, KLDecoder, serving_decoder
from twinshot_engine.weights import StoredPart, same_names

MOST_PROMPT_TOKENS = 512
"""What ``ZImagePipeline`` cuts prompts to; here longer ones are refused."""


def is_fp8(name: str) -> bool:
    """Say which projections of the transformer are fp8: those of the layers that the image runs through.

    The context refiner runs once a prompt on a few tokens, so fp8 would gain nothing there.
    """
    return not name.startswith("context_refiner.")


@dataclass(frozen=True, kw_only=True)
class ZImageModel(Model):
    """See :class:`~twinshot_engine.families.model.Model`; a caption is ``[1, L, dim]``, refined."""

    text: Qwen3Encoder
    transformer: FoldedTransformer

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The three parts."""
        return {"text": self.text, "transformer": self.transformer, "decoder": self.decoder}

    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Embed and refine; what is beyond ``length`` becomes the learned pad token."""
        return (self.transformer.refine_caption(self.text(ids), length),)

    def caption_like(self, tokens: int) -> tuple[Like, ...]:
        """Caption tokens as wide as the stream."""
        return (Like((1, tokens, self.transformer.config.dim), self.placement.dtype),)

    def denoise(
        self, latents: Tensor, fresh: Tensor, caption: Caption, modulation: Tensor, weights: Tensor
    ) -> Tensor:
        """Run one pass; ``modulation`` is a row of the table of times."""
        named = self.transformer.modulation(modulation)
        prediction = self.transformer.predict(latents.to(self.placement.dtype), caption[0], named)
        # Z-Image predicts from noise to data; velocities point from data to noise.
        return advance(latents, -prediction.float(), fresh, weights)


@dataclass(frozen=True, slots=True)
class _Found:
    """A checkpoint's parts on the meta device, compared with its headers."""

    text: Qwen3Encoder
    transformer: FoldedTransformer
    decoder: KLDecoder
    parts: tuple[Part, ...]
    unfolded: StoredPart
    tokenizer: ChatTokenizer
    card: Card
    workspace_bytes: int


def load_z_image(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, progress: Progress
) -> Model:
    """Load a Z-Image checkpoint; see :class:`~twinshot_engine.families.model.FamilyLoader`."""
    found = _find(checkpoint, config, placement)
    check_memory(modules_of(found.parts), found.workspace_bytes, placement)
    fill_parts(found.parts, placement.device, progress)
    progress("modulation table", 1.0)
    transformer = found.transformer

    def fold(stored: StoredPart) -> Folded:
        table = read_times(stored, transformer.config, distinct_times(config.steps), placement.device)
        return Folded(make_passes(table, config.steps))

    slots, folded = folded_slots(transformer), fold(found.unfolded)
    return ZImageModel(
        tokenizer=found.tokenizer,
        placement=placement,
        card=found.card,
        passes=folded.passes,
        latent_channels=transformer.config.in_channels,
        downscale=found.decoder.config.downscale,
        text=found.text,
        transformer=transformer,
        decoder=serving_decoder(found.decoder, placement.dtype),
        adaptable=Adaptable(transformer, found.unfolded, slots, folded, fold, Z_IMAGE_REPACK.translate),
    )


def plan_z_image(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
    """Plan a Z-Image checkpoint; see :class:`~twinshot_engine.families.model.FamilyPlanner`."""
    found = _find(checkpoint, config, placement)
    return Plan(
        part_bytes(found.parts, placement.device),
        found.workspace_bytes,
        found.card.sizes.listed,
        str(found.card.sizes),
        found.tokenizer.max_tokens,
        found.transformer.config.second_time_embedder,
    )


def place(text: nn.Module, transformer: FoldedTransformer, placement: Placement) -> None:
    """Give modules on the meta device the number formats of ``placement``.

    The decoder stays fp32 until its weights have been folded.
    """
    for module in (text, transformer):
        module.to(placement.dtype)  # before anything becomes fp8, which this would undo
    if placement.precision == "fp8":
        quantize_projections(transformer, is_fp8)
    if placement.text_fp8:
        quantize_projections(text, lambda _name: True)


def _find(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> _Found:
    """Build the parts from their configs and compare them with the files' headers; nothing is allocated."""
    checkpoint.build("text_encoder", read_config)
    stored = checkpoint.part("transformer", ignored=is_time)
    second = has_second_embedder(stored)

    def build(config: Mapping[str, Any]) -> FoldedTransformer:
        return FoldedTransformer(SingleStreamConfig.from_dict({**config, "second_time_embedder": second}))

    with torch.device("meta"):
        text = checkpoint.build("text_encoder", lambda config: Qwen3Encoder(read_config(config)))
        transformer = checkpoint.build("transformer", build)
        decoder = checkpoint.build("vae", lambda config: KLDecoder(KLConfig.from_dict(config)))
    parts = (
        Part("text encoder", text, find_encoder(checkpoint), encoder_slots(text)),
        Part("transformer", transformer, stored, folded_slots(transformer)),
        Part("decoder", decoder, _find_decoder(checkpoint), same_names(decoder)),
    )
    check_parts(parts)
    _check_time(stored, transformer)
    made = transformer.config.in_channels
    check_channels(
        checkpoint, "text encoder", text.config.hidden_size, "transformer", transformer.config.cap_feat_dim
    )
    check_channels(checkpoint, "transformer", made, "vae", decoder.config.latent_channels)
    place(text, transformer, placement)
    tokenizer = _load_tokenizer(checkpoint, text, transformer)
    pixels = decoder.config.downscale * transformer.config.patch_size
    longest = min(transformer.config.axes_lens[1:]) * pixels
    card = advertised_card(checkpoint, config, placement, multiple=pixels, longest_side=longest)
    workspace = _workspace(transformer, decoder, tokenizer, card, config)
    return _Found(text, transformer, decoder, parts, stored, tokenizer, card, workspace)


def _find_decoder(checkpoint: Checkpoint) -> StoredPart:
    return checkpoint.part("vae", ignored=lambda name: name.startswith(KLDecoder.ENCODER_PARAMETERS))


def _check_time(stored: StoredPart, transformer: FoldedTransformer) -> None:
    """Compare what only serves to make the table."""
    unfolded = open_form(transformer.config)
    replace(stored, ignored=lambda _name: True).check(unfolded, time_slots(unfolded))


def _load_tokenizer(
    checkpoint: Checkpoint, text: Qwen3Encoder, transformer: FoldedTransformer
) -> ChatTokenizer:
    tokenizer = checkpoint.tokenizer()
    vocabulary = text.config.vocab_size
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"'{checkpoint.home('tokenizer')}/tokenizer' has {len(tokenizer)} tokens, "
            f"more than the {vocabulary} of the text encoder."
        )
    most = min(tokenizer.model_max_length, MOST_PROMPT_TOKENS, transformer.config.max_caption_tokens)
    return ChatTokenizer(tokenizer, TOKEN_MULTIPLE, most)


def _workspace(
    transformer: FoldedTransformer,
    decoder: KLDecoder,
    tokenizer: ChatTokenizer,
    card: Card,
    config: EngineConfig,
) -> int:
    """Estimate the bytes of intermediate results at the largest size."""
    sizes = transformer.config
    pixels = max(width * height for width, height in card.sizes.listed)
    tokens = pixels // (decoder.config.downscale * sizes.patch_size) ** 2 + tokenizer.buckets[-1]
    return workspace_bytes(
        stream_bytes(tokens, sizes.dim, int(sizes.dim / 3 * 8)),
        kl_decoder_bytes(pixels, decoder.config.block_out_channels),
        config,
    )


Z_IMAGE = Family(
    load_z_image,
    plan_z_image,
    {
        "text_encoder": build_model,
        "transformer": lambda config: SingleStreamTransformer(SingleStreamConfig.from_dict(config)),
        "vae": lambda config: KLDecoder(KLConfig.from_dict(config)),
    },
    Z_IMAGE_REPACK,
)
"""``ZImagePipeline``."""
