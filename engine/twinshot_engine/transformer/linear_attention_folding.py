"""From a stored SANA to the transformer that serves it; see :mod:`twinshot_engine.transformer.folding`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twinshot_engine.schedule import single_time
from twinshot_engine.transformer.linear_attention import LinearAttentionTransformer
from twinshot_engine.transformer.linear_attention_config import LinearAttentionConfig
from twinshot_engine.transformer.linear_attention_stored import TIME_SCALE, StoredTransformer
from twinshot_engine.weights import Slot, StoredPart, as_taps, as_wide, pack, same_names

Times = Sequence[tuple[float, float]]
"""Pairs of current and target time, or of current angle and 0."""

SECOND_EMBEDDER = "time_embed_2."


def is_time(name: str) -> bool:
    """Say whether a stored tensor only serves to make the table."""
    return name.startswith("time_embed") or name.endswith("scale_shift_table")


def open_form(config: LinearAttentionConfig) -> StoredTransformer:
    """Build the open form on the meta device."""
    with torch.device("meta"):
        return StoredTransformer(config)


def time_slots(stored: StoredTransformer) -> dict[str, Slot]:
    """Slots of the parameters that :func:`fold_times` reads."""
    return {name: slot for name, slot in same_names(stored).items() if is_time(name)}


_RENAMED = {
    "patch_embed.weight": "patch_embed.proj.weight",
    "patch_embed.bias": "patch_embed.proj.bias",
    "caption_1.weight": "caption_projection.linear_1.weight",
    "caption_1.bias": "caption_projection.linear_1.bias",
    "caption_2.weight": "caption_projection.linear_2.weight",
    "caption_2.bias": "caption_projection.linear_2.bias",
    "caption_norm": "caption_norm.weight",
}
_RENAMED_IN_BLOCKS = {
    "attn1.to_out.weight": "attn1.to_out.0.weight",
    "attn1.to_out.bias": "attn1.to_out.0.bias",
    "attn1.norm_q": "attn1.norm_q.weight",
    "attn1.norm_k": "attn1.norm_k.weight",
    "attn2.to_out.weight": "attn2.to_out.0.weight",
    "attn2.to_out.bias": "attn2.to_out.0.bias",
    "attn2.norm_q": "attn2.norm_q.weight",
    "ff.widen.weight": "ff.conv_inverted.weight",
    "ff.widen.bias": "ff.conv_inverted.bias",
    "ff.taps": "ff.conv_depth.weight",
    "ff.bias": "ff.conv_depth.bias",
    "ff.narrow.weight": "ff.conv_point.weight",
}
_VIEWS = {
    "patch_embed.proj.weight": as_wide,
    "ff.conv_inverted.weight": as_wide,
    "ff.conv_point.weight": as_wide,
    "ff.conv_depth.weight": as_taps,
}


def folded_slots(transformer: LinearAttentionTransformer) -> dict[str, Slot]:
    """Slots of a folded transformer's parameters under the names a checkpoint stores."""
    slots = same_names(transformer)
    dim, layers = transformer.config.dim, transformer.config.num_layers
    kinds = ["weight", "bias"] if transformer.config.attention_bias else ["weight"]
    for layer in range(layers):
        ours, theirs = f"blocks.{layer}.", f"transformer_blocks.{layer}."
        for kind in kinds:
            pack(slots, f"{ours}attn1.to_qkv.{kind}", [(f"{theirs}attn1.to_{x}.{kind}", dim) for x in "qkv"])
        for name in [name for name in slots if name.startswith(ours)]:
            rest = name.removeprefix(ours)
            slots[theirs + _RENAMED_IN_BLOCKS.get(rest, rest)] = slots.pop(name)
    for name, stored in _RENAMED.items():
        slots[stored] = slots.pop(name)
    for kind in ("weight", "bias"):
        names = [f"transformer_blocks.{layer}.attn2.to_{x}.{kind}" for layer in range(layers) for x in "kv"]
        pack(slots, f"caption_kv.{kind}", [(name, dim) for name in names])
    if transformer.key_norms is not None:
        del slots["key_norms"]
        for layer in range(layers):
            slots[f"transformer_blocks.{layer}.attn2.norm_k.weight"] = Slot("key_norms", layer)
    return {name: _viewed(name, slot) for name, slot in slots.items()}


def _viewed(name: str, slot: Slot) -> Slot:
    for ending, view in _VIEWS.items():
        if name.endswith(ending):
            return slot._replace(view=view)
    return slot


@torch.no_grad()
def fold_times(stored: StoredTransformer, times: Times, guidance: float | None) -> Tensor:
    """Compute the table of a closed schedule.

    Args:
        stored: the open form; only what :func:`time_slots` names needs values.
        times: the pairs, one for each row.
        guidance: the guidance scale that SANA-Sprint is served at; None for other checkpoints.

    Returns:
        ``[T, 6 * blocks + 3, dim]`` fp32: the rows of
        :meth:`~linear_attention_stored.StoredTransformer.modulate`, and one filled with what latents are
        multiplied by.
    """
    if guidance is None and not stored.config.second_time_embedder:
        times = [(single_time(*pair), 0.0) for pair in times]
    device = stored.scale_shift_table.device
    pairs = torch.tensor(times, dtype=torch.float64, device=device)
    if guidance is None:
        scaled = pairs * (TIME_SCALE * stored.config.timestep_scale)
        rows = stored.modulate(scaled[:, 0].float(), scaled[:, 1].float(), 0.0)
        input_scale = torch.ones(len(times), dtype=torch.float64, device=device)
    else:
        flow = torch.tensor([flow_time(angle) for angle, _ in times], dtype=torch.float64, device=device)
        amount = guidance * stored.config.guidance_embeds_scale
        rows = stored.modulate(flow.float(), torch.zeros_like(flow).float(), amount)
        input_scale = (flow.square() + (1 - flow).square()).sqrt()
    filled = input_scale.float()[:, None, None].expand(-1, 1, rows.shape[-1])
    return torch.cat((rows, filled), dim=1)


def flow_time(angle: float) -> float:
    """Convert an angle of a trigonometric schedule to the flow time that SANA knows."""
    return math.sin(angle) / (math.cos(angle) + math.sin(angle))


def read_times(
    stored: StoredPart,
    config: LinearAttentionConfig,
    times: Times,
    guidance: float | None,
    device: torch.device,
) -> Tensor:
    """Read what makes the table, make it on ``device``, and let go of the rest.

    Raises:
        CheckpointError: a file is damaged.
    """
    unfolded = open_form(config)
    slots = time_slots(unfolded)
    # On the CPU a tensor is a view of the file: unaligned, and at the mercy of whoever changes the file.
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in stored.read(slots, device)}
    unfolded.load_state_dict(weights, strict=False, assign=True)
    return fold_times(unfolded, times, guidance)
