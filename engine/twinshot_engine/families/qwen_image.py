"""Qwen-Image and TwinFlow-Qwen-Image: ``QwenImagePipeline`` folders.

Parts: ``text_encoder/`` (Qwen2.5-VL, of which the language model is read), ``tokenizer/``, ``transformer/``
(TwinFlow adds ``time_text_embed_2``; a LoRA-merged or plain checkpoint has none, and is given one time, see
:func:`~twinshot_engine.schedule.single_time`) and ``vae/`` (of which only the decoder is read).
``scheduler/`` is not used: times come from :mod:`twinshot_engine.schedule`.
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
from twinshot_engine.families.repacked import Repack
from twinshot_engine.memory import check_memory, kl_decoder_bytes, stream_bytes, workspace_bytes
from twinshot_engine.precision import quantize_projections
from twinshot_engine.schedule import advance
from twinshot_engine.stored_form import stored_form, stored_shapes
from twinshot_engine.text import Caption
from twinshot_engine.text.qwen2_5_vl import Qwen25VLEncoder, encoder_slots, find_encoder, read_config
from twinshot_engine.text.template import TemplateTokenizer
from twinshot_engine.transformer.dual_stream import DualStreamTransformer
from twinshot_engine.transformer.dual_stream_config import MOST_POSITIONS, DualStreamConfig
from twinshot_engine.transformer.dual_stream_folding import (
    has_second_embedder,
    is_unread,
    read_table,
    transformer_slots,
    unread_shapes,
)
from twinshot_engine.vae.qwen_image import QwenImageDecoder
from twinshot_engine.vae.qwen_image_config import QwenImageVAEConfig
from twinshot_engine.weights import Slot, StoredPart, same_names

BUCKETS = (64, 128, 256, 512, 1024)
"""Padded lengths of prompts. Padding changes no picture; so few tokens cost little beside reading weights."""


@dataclass(frozen=True, kw_only=True)
class QwenImageModel(Model):
    """See :class:`~twinshot_engine.families.model.Model`.

    A caption is ``[1, L, dim]``, the text stream before the first block, and ``[1]`` int32, its true length.
    """

    text: Qwen25VLEncoder
    transformer: DualStreamTransformer

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The three parts."""
        return {"text": self.text, "transformer": self.transformer, "decoder": self.decoder}

    def encode(self, ids: Tensor, length: Tensor) -> Caption:
        """Embed, and bring into the text stream; what is beyond ``length`` will be seen by no image."""
        return self.transformer.embed_text(self.text(ids)), length.to(torch.int32)

    def caption_like(self, tokens: int) -> tuple[Like, ...]:
        """The text stream and a length."""
        stream = Like((1, tokens, self.transformer.config.dim), self.placement.dtype)
        return stream, Like((1,), torch.int32)

    def denoise(
        self, latents: Tensor, fresh: Tensor, caption: Caption, modulation: Tensor, weights: Tensor
    ) -> Tensor:
        """Run one pass; ``modulation`` is a row of the transformer's table."""
        text, lengths = caption
        velocity = self.transformer.predict(latents.to(self.placement.dtype), text, lengths, modulation)
        return advance(latents, velocity.float(), fresh, weights)

    def guide(self, latents: Tensor, moved: Tensor, without: Tensor, guidance: float) -> Tensor:
        """Combine as ``QwenImagePipeline``: each token's velocity keeps the norm that it has with the prompt.

        What takes guidance draws no noise anew, so a step adds a multiple of the velocity to the latents,
        which cancels in the ratio of two norms.
        """
        patch = self.transformer.config.patch_size
        step, combined = (
            _cut(each - latents, patch) for each in (moved, torch.lerp(without, moved, guidance))
        )
        return latents + (combined * (_token_norms(step) / _token_norms(combined))).reshape(latents.shape)


def _cut(x: Tensor, patch: int) -> Tensor:
    """View ``[B, C, h, w]`` as ``[B, C, h / patch, patch, w / patch, patch]``."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // patch, patch, width // patch, patch)


def _token_norms(patches: Tensor) -> Tensor:
    """Norms ``[B, 1, rows, 1, columns, 1]`` of what :func:`_cut` returns, each over one token."""
    norms: Tensor = torch.linalg.vector_norm(patches, dim=(1, 3, 5), keepdim=True)
    return norms


@dataclass(frozen=True, slots=True)
class _Found:
    """A checkpoint's parts on the meta device, compared with its headers."""

    text: Qwen25VLEncoder
    transformer: DualStreamTransformer
    decoder: QwenImageVAEConfig
    parts: tuple[Part, Part, Part]
    tokenizer: TemplateTokenizer
    card: Card
    workspace_bytes: int


def load_qwen_image(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, progress: Progress
) -> Model:
    """Load a Qwen-Image checkpoint; see :class:`~twinshot_engine.families.model.FamilyLoader`."""
    found = _find(checkpoint, config, placement)
    check_memory(modules_of(found.parts), found.workspace_bytes, placement)
    fill_parts(found.parts, placement.device, progress)
    progress("modulation table", 1.0)
    transformer, (_, denoiser, decoder) = found.transformer, found.parts

    def fold(stored: StoredPart) -> Folded:
        table = read_table(stored, transformer.config, distinct_times(config.steps), placement.device)
        return Folded(make_passes(table, config.steps))

    folded = fold(denoiser.stored)
    found.text.keep(found.tokenizer.constant)
    return QwenImageModel(
        tokenizer=found.tokenizer,
        placement=placement,
        card=found.card,
        passes=folded.passes,
        latent_channels=found.decoder.z_dim,
        downscale=found.decoder.downscale,
        text=found.text,
        transformer=transformer,
        decoder=QwenImageDecoder(found.decoder, dict(decoder.module.named_parameters()), placement.dtype),
        negative_prompt=" ",  # as the pipeline's own examples have it
        adaptable=Adaptable(
            transformer, denoiser.stored, denoiser.slots, folded, fold, QWEN_IMAGE_REPACK.translate
        ),
    )


def plan_qwen_image(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
    """Plan a Qwen-Image checkpoint; see :class:`~twinshot_engine.families.model.FamilyPlanner`."""
    found = _find(checkpoint, config, placement)
    return Plan(
        part_bytes(found.parts, placement.device),
        found.workspace_bytes,
        found.card.sizes.listed,
        str(found.card.sizes),
        found.tokenizer.max_tokens,
        found.transformer.config.second_time_embedder,
    )


def place(text: nn.Module, transformer: nn.Module, placement: Placement) -> None:
    """Give modules on the meta device the number formats of ``placement``.

    In fp8 are the projections of both streams; embedders, the last projection, norms, the residual streams
    and attention stay bf16. The decoder stays fp32 until its weights have been folded.
    """
    for module in (text, transformer):
        module.to(placement.dtype)  # before anything becomes fp8, which this would undo
    if placement.precision == "fp8":
        quantize_projections(transformer, lambda _name: True)
    if placement.text_fp8:
        quantize_projections(text, lambda _name: True)


def _find(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> _Found:
    """Build the parts from their configs and compare them with the files' headers; nothing is allocated."""
    checkpoint.build("text_encoder", read_config)
    stored = checkpoint.part("transformer")
    second = has_second_embedder(stored)
    text, transformer = _build(checkpoint, second_time_embedder=second)
    vae = checkpoint.build("vae", QwenImageVAEConfig.from_dict)
    stored = replace(stored, ignored=lambda name: is_unread(name, transformer.config))
    decoder = stored_form(vae.stored_shapes())
    parts = (
        Part("text encoder", text, find_encoder(checkpoint), encoder_slots(text)),
        Part("transformer", transformer, stored, transformer_slots(transformer)),
        Part("decoder", decoder, checkpoint.part("vae", ignored=_is_unread_by_decoder), same_names(decoder)),
    )
    check_parts(parts)
    _check_unread(stored, transformer.config)
    sizes = transformer.config
    check_channels(
        checkpoint, "text encoder", text.config.hidden_size, "transformer", sizes.joint_attention_dim
    )
    check_channels(checkpoint, "transformer", sizes.out_channels, "vae", vae.z_dim)
    place(text, transformer, placement)
    tokenizer = _load_tokenizer(checkpoint, text)
    pixels = vae.downscale * sizes.patch_size
    longest = (MOST_POSITIONS - BUCKETS[-1]) * pixels
    card = advertised_card(checkpoint, config, placement, multiple=pixels, longest_side=longest)
    workspace = _workspace(sizes, vae, card, config)
    return _Found(text, transformer, vae, parts, tokenizer, card, workspace)


def _build(
    checkpoint: Checkpoint, *, second_time_embedder: bool
) -> tuple[Qwen25VLEncoder, DualStreamTransformer]:
    def build(config: Mapping[str, Any]) -> DualStreamTransformer:
        given = {**config, "second_time_embedder": second_time_embedder}
        return DualStreamTransformer(DualStreamConfig.from_dict(given))

    with torch.device("meta"):
        text = checkpoint.build("text_encoder", lambda config: Qwen25VLEncoder(read_config(config)))
        return text, checkpoint.build("transformer", build)


def _is_unread_by_decoder(name: str) -> bool:
    return name.startswith(("encoder.", "quant_conv.")) or ".time_conv." in name


def _check_unread(stored: StoredPart, config: DualStreamConfig) -> None:
    """Compare what only serves to make the table, and what is left aside, so that no file is half a one."""
    module = stored_form(unread_shapes(config))
    replace(stored, ignored=lambda _name: True).check(module, same_names(module))


def _load_tokenizer(checkpoint: Checkpoint, text: Qwen25VLEncoder) -> TemplateTokenizer:
    tokenizer = checkpoint.tokenizer(chat=False)
    vocabulary = text.config.vocab_size
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"'{checkpoint.home('tokenizer')}/tokenizer' has {len(tokenizer)} tokens, "
            f"more than the {vocabulary} of the text encoder."
        )
    try:
        return TemplateTokenizer(tokenizer, BUCKETS)
    except ValueError as error:
        raise CheckpointError(
            f"'{checkpoint.home('tokenizer')}/tokenizer' cannot be used: {error}."
        ) from error


def _workspace(sizes: DualStreamConfig, vae: QwenImageVAEConfig, card: Card, config: EngineConfig) -> int:
    """Estimate the bytes of intermediate results at the largest size."""
    pixels = max(width * height for width, height in card.sizes.listed)
    tokens = pixels // (vae.downscale * sizes.patch_size) ** 2 + BUCKETS[-1]
    return workspace_bytes(
        stream_bytes(tokens, sizes.dim, sizes.ffn_channels),
        kl_decoder_bytes(pixels, vae.widths[::-1]),
        config,
    )


def _stored_text(config: Mapping[str, Any]) -> nn.Module:
    encoder = Qwen25VLEncoder(read_config(config))
    return stored_form(stored_shapes(encoder, encoder_slots(encoder)))


def _stored_transformer(config: Mapping[str, Any]) -> nn.Module:
    transformer = DualStreamTransformer(DualStreamConfig.from_dict(config))
    slots: Mapping[str, Slot] = transformer_slots(transformer)
    return stored_form(stored_shapes(transformer, slots) | unread_shapes(transformer.config))


QWEN_IMAGE_REPACK = Repack(
    frozenset(("img_in.weight", "txt_norm.weight", "transformer_blocks.0.attn.add_q_proj.weight")),
    lambda headers: headers,  # everybody keeps diffusers' names
    "Qwen/Qwen-Image",
)
"""Transformer-only files of ``QwenImagePipeline``."""

QWEN_IMAGE = Family(
    load_qwen_image,
    plan_qwen_image,
    {
        "text_encoder": _stored_text,
        "transformer": _stored_transformer,
        "vae": lambda config: stored_form(QwenImageVAEConfig.from_dict(config).stored_shapes()),
    },
    QWEN_IMAGE_REPACK,
)
"""``QwenImagePipeline``."""
