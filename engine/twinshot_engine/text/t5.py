"""T5's encoder as Stable Diffusion 3 reads it: every layer, the final norm, and no mask.

The pipeline pads prompts to a fixed length and hides none of it, so padding takes part in attention and in
what the transformer reads. Positions are a bias of the scores, the same in every layer; scores are not
scaled. Activations of the published weights pass fp16's range, never bf16's.
Source: Raffel et al., arXiv 1910.10683; the layout is transformers' ``T5EncoderModel``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import T5Config

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.precision import Activation, Projection, add_normalize, gate_gelu, normalize, takes_rows
from twinshot_engine.tables import keep
from twinshot_engine.text.words import WordTable
from twinshot_engine.weights import Slot, StoredPart, pack, same_names
from twinshot_kernels import biased_attention


def read_config(config: Mapping[str, Any]) -> T5Config:
    """Read a ``config.json``.

    Raises:
        ValueError: the model is not a T5 with gated GELU (version 1.1).
    """
    if config.get("model_type") != "t5":
        raise ValueError(f"model_type {config.get('model_type')!r} is not supported: 't5' is")
    if config.get("feed_forward_proj") != "gated-gelu":
        raise ValueError(
            f"feed_forward_proj {config.get('feed_forward_proj')!r} is not supported: 'gated-gelu' is"
        )
    return T5Config(**config)


class T5Encoder(nn.Module):
    """A T5 encoder in the form that serves: packed projections."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = WordTable(config.vocab_size, config.d_model)
        self.position_bias = nn.Parameter(
            torch.empty(config.relative_attention_num_buckets, config.num_heads)
        )
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.final_norm = nn.Parameter(torch.empty(config.d_model))
        self._buckets: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token ids ``[B, L]``, padding and all, as ``[B, L, d_model]``."""
        layers = cast("list[_Layer]", list(self.layers))
        bias = self.position_bias[self._position_buckets(tokens.shape[1], tokens.device)]
        bias = bias.permute(2, 0, 1).unsqueeze(0).contiguous()
        x = self.shared(tokens)
        h = normalize(
            x, layers[0].norm1, self.config.layer_norm_epsilon, quantized=takes_rows(layers[0].to_qkv)
        )
        scales = [*(layer.norm1 for layer in layers[1:]), self.final_norm]
        rows = [*(takes_rows(layer.to_qkv) for layer in layers[1:]), False]
        for layer, scale, rows_ahead in zip(layers, scales, rows, strict=True):
            x, h = layer(x, h, bias, scale, rows_ahead=rows_ahead)
        return cast("Tensor", h)

    def _position_buckets(self, tokens: int, device: torch.device) -> Tensor:
        def build() -> Tensor:
            count, distance = (
                self.config.relative_attention_num_buckets,
                self.config.relative_attention_max_distance,
            )
            return position_buckets(tokens, count, distance).to(device)

        return keep(self._buckets, (tokens, device), build)


def position_buckets(tokens: int, buckets: int, max_distance: int) -> Tensor:
    """Sort the distances from every query to every key: ``[tokens, tokens]`` int64, 0 to ``buckets - 1``.

    Half of the buckets are for keys ahead. Of each half, the first half holds one distance a bucket and the
    rest grow logarithmically to ``max_distance`` and beyond.
    """
    place = torch.arange(tokens)
    distance = place[None, :] - place[:, None]
    side, exact = buckets // 2, buckets // 4
    far = distance.abs().clamp(min=1).float() / exact
    steps = (torch.log(far) / math.log(max_distance / exact) * (side - exact)).long()
    grown = (exact + steps).clamp(max=side - 1)
    return (distance > 0) * side + torch.where(distance.abs() < exact, distance.abs(), grown)


class _Layer(nn.Module):
    """Pre-normed attention and GeGLU; adding to the stream and normalising it are one operation."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.heads, self.eps = config.num_heads, config.layer_norm_epsilon
        self.to_qkv = Projection(width, 3 * inner)
        self.to_out = Projection(inner, width)
        self.gate_up = Projection(width, 2 * config.d_ff)
        self.down = Projection(config.d_ff, width)
        self.norm1 = nn.Parameter(torch.empty(width))
        self.norm2 = nn.Parameter(torch.empty(width))

    def forward(
        self, x: Tensor, h: Activation, bias: Tensor, scale_ahead: Tensor, *, rows_ahead: bool
    ) -> tuple[Tensor, Activation]:
        """Refine the stream ``x``, and normalise it by ``scale_ahead`` for whoever comes next."""
        query, key, value = self.to_qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = self.to_out(biased_attention(query, key, value, bias, 1.0).flatten(-2))
        x, h = add_normalize(x, mixed, self.norm2, self.eps, quantized=takes_rows(self.gate_up))
        widened = self.down(gate_gelu(self.gate_up(h), quantized=takes_rows(self.down)))
        return add_normalize(x, widened, scale_ahead, self.eps, quantized=rows_ahead)


_STORED = {
    "to_out.weight": "layer.0.SelfAttention.o.weight",
    "down.weight": "layer.1.DenseReluDense.wo.weight",
    "norm1": "layer.0.layer_norm.weight",
    "norm2": "layer.1.layer_norm.weight",
}
"""What transformers calls a layer's parameters that are not packed."""


def find_encoder(checkpoint: Checkpoint, name: str) -> StoredPart:
    """Read the headers of a stored T5 encoder, whichever of its two names the embedding has.

    Raises:
        CheckpointError: as :func:`~twinshot_engine.weights.find_part`.
    """
    return checkpoint.part(
        name, rename=lambda key: "shared.weight" if key == "encoder.embed_tokens.weight" else key
    )


def encoder_slots(encoder: T5Encoder) -> dict[str, Slot]:
    """Slots of an encoder's parameters under transformers' names."""
    slots, config = same_names(encoder), encoder.config
    first = "encoder.block.0.layer.0.SelfAttention."
    slots[f"{first}relative_attention_bias.weight"] = slots.pop("position_bias")
    slots["encoder.final_layer_norm.weight"] = slots.pop("final_norm")
    inner = config.num_heads * config.d_kv
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}.", f"encoder.block.{index}."
        for name, stored in _STORED.items():
            slots[theirs + stored] = slots.pop(ours + name)
        pack(
            slots,
            f"{ours}to_qkv.weight",
            [(f"{theirs}layer.0.SelfAttention.{part}.weight", inner) for part in "qkv"],
        )
        halves = [(f"{theirs}layer.1.DenseReluDense.wi_{part}.weight", config.d_ff) for part in "01"]
        pack(slots, f"{ours}gate_up.weight", halves)
    return slots
