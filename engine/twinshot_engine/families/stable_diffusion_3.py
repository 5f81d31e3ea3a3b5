"""Stable Diffusion 3.5 and TwinFlow's: ``StableDiffusion3Pipeline`` folders.

Parts: ``text_encoder/`` and ``text_encoder_2/`` (CLIP), ``text_encoder_3/`` (T5; ``model_index.json`` may say
that there is none), a ``tokenizer`` for each, ``transformer/`` (TwinFlow adds ``time_text_embed_2``, which
stock diffusers ignores) and ``vae/`` (of which only the decoder is read). ``scheduler/`` is not used: times
come from :mod:`twinshot_engine.schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.families.model import Adaptable, Family, Folded, Like, Model, Plan, Progress
from twinshot_engine.families.parts import fill_parts, modules_of, part_bytes
from twinshot_engine.families.passes import distinct_times, make_passes
from twinshot_engine.families.stable_diffusion_3_keys import STABLE_DIFFUSION_3_REPACK
from twinshot_engine.families.stable_diffusion_3_parts import find
from twinshot_engine.memory import check_memory
from twinshot_engine.schedule import advance
from twinshot_engine.stored_form import stored_form, stored_shapes
from twinshot_engine.text import Caption, clip, t5
from twinshot_engine.text.joint_encoders import T5_TOKENS, JointEncoders
from twinshot_engine.text.joint_prompt import JointTokenizer
from twinshot_engine.transformer.joint_config import JointConfig
from twinshot_engine.transformer.joint_folding import joint_slots, read_tables, read_times, table_shapes
from twinshot_engine.transformer.joint_transformer import JointTransformer
from twinshot_engine.vae import KLConfig, KLDecoder, serving_decoder
from twinshot_engine.weights import StoredPart


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3Model(Model):
    """See :class:`~twinshot_engine.families.model.Model`.

    A caption is the text stream ``[1, L, dim]`` and the modulation of all passes ``[1, P, V * dim]``; what a
    pass adds is its number.
    """

    tokenizer: JointTokenizer
    text: JointEncoders
    transformer: JointTransformer

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


def load_stable_diffusion_3(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, progress: Progress
) -> Model:
    """Load a checkpoint; see :class:`~twinshot_engine.families.model.FamilyLoader`."""
    found = find(checkpoint, config, placement)
    check_memory(modules_of(found.parts), found.workspace_bytes, placement)
    fill_parts(found.parts, placement.device, progress)
    progress("tables", 1.0)
    transformer, times = found.transformer, distinct_times(config.steps)
    read_tables(found.stored, transformer, times, found.longest, placement.device)
    passes = make_passes(torch.arange(len(times), device=placement.device), config.steps)

    def fold(stored: StoredPart) -> Folded:
        rows, gaps = read_times(stored, transformer.config, times, placement.device)
        return Folded(passes, {"modulation.times": rows, "modulation.gaps": gaps})

    return StableDiffusion3Model(
        tokenizer=found.tokenizer,
        placement=placement,
        card=found.card,
        passes=passes,
        latent_channels=found.transformer.config.in_channels,
        downscale=found.decoder.config.downscale,
        text=found.text,
        transformer=found.transformer,
        decoder=serving_decoder(found.decoder, placement.dtype),
        adaptable=Adaptable(
            transformer,
            found.stored,
            joint_slots(transformer),
            fold(found.stored),
            fold,
            STABLE_DIFFUSION_3_REPACK.translate,
        ),
    )


def plan_stable_diffusion_3(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
    """Plan a checkpoint; see :class:`~twinshot_engine.families.model.FamilyPlanner`."""
    found = find(checkpoint, config, placement)
    return Plan(
        part_bytes(found.parts, placement.device),
        found.workspace_bytes,
        found.card.sizes.listed,
        str(found.card.sizes),
        found.tokenizer.max_tokens,
        found.transformer.config.second_time_embedder,
    )


def _transformer_form(config: Mapping[str, Any]) -> nn.Module:
    """What a checkpoint stores of a transformer, TwinFlow's second embedder included."""
    read = JointConfig.from_dict({**config, "second_time_embedder": True})
    transformer = JointTransformer(read)
    shapes = stored_shapes(transformer, joint_slots(transformer))
    return stored_form({**shapes, **table_shapes(read)})


def _clip_form(config: Mapping[str, Any]) -> nn.Module:
    encoder = clip.ClipEncoder(clip.read_config(config))
    return stored_form(stored_shapes(encoder, clip.encoder_slots(encoder)))


def _t5_form(config: Mapping[str, Any]) -> nn.Module:
    encoder = t5.T5Encoder(t5.read_config(config))
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
    STABLE_DIFFUSION_3_REPACK,
)
"""``StableDiffusion3Pipeline``."""
