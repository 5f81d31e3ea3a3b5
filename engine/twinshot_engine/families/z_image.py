"""Z-Image and TwinFlow-Z-Image: ``ZImagePipeline`` folders.

Parts: ``text_encoder/`` (Qwen3, with or without its language-model head), ``tokenizer/``, ``transformer/``
(TwinFlow adds ``t_embedder_2``, which stock diffusers ignores) and ``vae/`` (of which only the decoder is
read). ``scheduler/`` is not used: times come from :mod:`twinshot_engine.schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from twinshot_engine.card import Card, read_card
from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families.model import Model, Pass, Plan, Progress
from twinshot_engine.memory import Workload, check_memory, weight_bytes, workspace_bytes
from twinshot_engine.precision import quantize_projections
from twinshot_engine.schedule import schedule_for
from twinshot_engine.text import PromptTokenizer
from twinshot_engine.text.qwen3 import Qwen3Encoder, encoder_slots, find_encoder, read_config
from twinshot_engine.transformer import FoldedTransformer, SingleStreamConfig
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
from twinshot_engine.weights import Slot, StoredPart, same_names

MOST_PROMPT_TOKENS = 512
"""What ``ZImagePipeline`` cuts prompts to; here longer ones are refused."""


def is_fp8(name: str) -> bool:
    """Say which projections of the transformer are fp8: those of the layers that the image runs through.

    The context refiner runs once a prompt on a few tokens, so fp8 would gain nothing there.
    """
    return not name.startswith("context_refiner.")


@dataclass(frozen=True, slots=True)
class Parts:
    """The three parts on the meta device, each with the type its weights shall have."""

    text: Qwen3Encoder
    transformer: FoldedTransformer
    decoder: KLDecoder

    def modules(self) -> tuple[nn.Module, ...]:
        """In the order they are loaded."""
        return self.text, self.transformer, self.decoder


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where the parts' weights are, and which slots they go to."""

    part: StoredPart
    slots: Mapping[str, Slot]


def build_parts(
    text: Qwen3Encoder, transformer: FoldedTransformer, vae: KLDecoder, placement: Placement
) -> Parts:
    """Give modules on the meta device the number formats of ``placement``."""
    for module in (text, transformer):
        module.to(placement.dtype)  # before anything becomes fp8, which this would undo
    # The decoder stays fp32 until its weights have been folded.
    if placement.precision == "fp8":
        quantize_projections(transformer, is_fp8)
    if placement.text_fp8:
        quantize_projections(text, lambda _name: True)
    return Parts(text, transformer, vae)


def load_z_image(
    checkpoint: Checkpoint, config: EngineConfig, placement: Placement, progress: Progress
) -> Model:
    """Load a Z-Image checkpoint; see :class:`~twinshot_engine.families.model.FamilyLoader`."""
    parts, stored = _find(checkpoint, placement)
    tokenizer = _load_tokenizer(checkpoint, parts)
    card = _read_card(checkpoint, parts, config, placement)
    check_memory(parts.modules(), _workload(parts, tokenizer, card, config), placement)
    for (name, source), module, (start, end) in zip(
        stored.items(), parts.modules(), _shares(parts), strict=True
    ):
        progress(name, start)
        span = partial(_report_within, progress, name, start, end)
        source.part.fill(module, source.slots, placement.device, span)
    progress("modulation table", 1.0)
    times = distinct_times(config.steps)
    unfolded = stored["transformer"].part
    parts.transformer.table = read_times(unfolded, parts.transformer.config, times, placement.device)
    decoder = serving_decoder(parts.decoder, placement.dtype)
    passes = make_passes(parts.transformer, config.steps)
    return Model(tokenizer, parts.text, parts.transformer, decoder, placement, card, passes)


def plan_z_image(checkpoint: Checkpoint, config: EngineConfig, placement: Placement) -> Plan:
    """Plan a Z-Image checkpoint; see :class:`~twinshot_engine.families.model.FamilyPlanner`."""
    parts, stored = _find(checkpoint, placement)
    tokenizer = _load_tokenizer(checkpoint, parts)
    card = _read_card(checkpoint, parts, config, placement)
    return Plan(
        {name: weight_bytes([module]) for name, module in zip(stored, parts.modules(), strict=True)},
        workspace_bytes(_workload(parts, tokenizer, card, config)),
        card.sizes.listed,
        str(card.sizes),
        tokenizer.max_tokens,
        parts.transformer.config.second_time_embedder,
    )


def _report_within(progress: Progress, name: str, start: float, end: float, done: float) -> None:
    progress(name, min(start + done * (end - start), end))


def _workload(parts: Parts, tokenizer: PromptTokenizer, card: Card, config: EngineConfig) -> Workload:
    return Workload(
        parts.transformer.config,
        parts.decoder.config,
        card.sizes.listed,
        max(config.batch_sizes),
        tokenizer.buckets[-1],
        config.text_cache_bytes,
    )


def distinct_times(steps: Sequence[int]) -> list[tuple[float, float]]:
    """The pairs of times that the schedules of all advertised step counts visit, each once."""
    schedules = [schedule_for(count) for count in steps]
    return sorted({pair for each in schedules for pair in zip(each.t, each.target_t, strict=True)})


def make_passes(transformer: FoldedTransformer, steps: Sequence[int]) -> dict[int, tuple[Pass, ...]]:
    """Look up the constants of every advertised schedule.

    The transformer's table has a row for each of :func:`distinct_times`.
    """
    rows = dict(zip(distinct_times(steps), transformer.table, strict=True))
    passes: dict[int, tuple[Pass, ...]] = {}
    for count in steps:
        schedule = schedule_for(count)
        weights = torch.tensor(schedule.weights, dtype=torch.float32, device=transformer.table.device)
        pairs = zip(schedule.t, schedule.target_t, strict=True)
        passes[count] = tuple(
            Pass(rows[pair], each, renoises=numbers[2] != 0)
            for pair, each, numbers in zip(pairs, weights, schedule.weights, strict=True)
        )
    return passes


def _find(checkpoint: Checkpoint, placement: Placement) -> tuple[Parts, dict[str, _Stored]]:
    """Build the parts from their configs and compare them with the files' headers; nothing is allocated."""
    checkpoint.build("text_encoder", read_config)
    encoder = find_encoder(checkpoint)
    transformer = checkpoint.part("transformer", ignored=is_time)
    vae = checkpoint.part("vae", ignored=lambda name: name.startswith(KLDecoder.ENCODER_PARAMETERS))
    second = has_second_embedder(transformer)

    def build(config: Mapping[str, Any]) -> FoldedTransformer:
        return FoldedTransformer(SingleStreamConfig.from_dict({**config, "second_time_embedder": second}))

    with torch.device("meta"):
        text = checkpoint.build("text_encoder", lambda config: Qwen3Encoder(read_config(config)))
        folded = checkpoint.build("transformer", build)
        decoder = checkpoint.build("vae", lambda config: KLDecoder(KLConfig.from_dict(config)))
    stored = {
        "text encoder": _Stored(encoder, encoder_slots(text)),
        "transformer": _Stored(transformer, folded_slots(folded)),
        "decoder": _Stored(vae, same_names(decoder)),
    }
    for source, module in zip(stored.values(), (text, folded, decoder), strict=True):
        source.part.check(module, source.slots)
    unfolded = open_form(folded.config)
    replace(transformer, ignored=lambda _name: True).check(unfolded, time_slots(unfolded))
    _check_fit(checkpoint, text, folded, decoder)
    return build_parts(text, folded, decoder, placement), stored


def _load_tokenizer(checkpoint: Checkpoint, parts: Parts) -> PromptTokenizer:
    tokenizer = checkpoint.tokenizer()
    vocabulary = parts.text.config.vocab_size
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"'{checkpoint.folder / 'tokenizer'}' has {len(tokenizer)} tokens, "
            f"more than the {vocabulary} of the text encoder."
        )
    most = min(tokenizer.model_max_length, MOST_PROMPT_TOKENS, parts.transformer.config.max_caption_tokens)
    return PromptTokenizer(tokenizer, TOKEN_MULTIPLE, most)


def _read_card(checkpoint: Checkpoint, parts: Parts, config: EngineConfig, placement: Placement) -> Card:
    transformer = parts.transformer.config
    pixels = parts.decoder.config.downscale * transformer.patch_size
    card = read_card(checkpoint, multiple=pixels, longest_side=min(transformer.axes_lens[1:]) * pixels)
    if config.sizes is not None:
        return card.advertise(config.sizes)
    # What is captured must be listed.
    return card.advertise(card.sizes.listed) if placement.backend == "fused" else card


def _shares(parts: Parts) -> list[tuple[float, float]]:
    """The span of the progress bar that each part takes, by its bytes."""
    sizes = [weight_bytes([module]) for module in parts.modules()]
    ends = [sum(sizes[: i + 1]) / sum(sizes) for i in range(len(sizes))]
    return list(zip([0.0, *ends[:-1]], ends, strict=True))


def _check_fit(
    checkpoint: Checkpoint, text: Qwen3Encoder, transformer: FoldedTransformer, decoder: KLDecoder
) -> None:
    made, read = text.config.hidden_size, transformer.config.cap_feat_dim
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
