"""Qwen3 as Z-Image reads it: the hidden states before the last layer.

``hidden_states[-2]`` never passes the last layer nor the final norm nor a language-model head, so none of
them is built or read. Attention is causal and padding stands on the right, so real tokens never see it and no
mask is needed. The template's constant prefix is three tokens, too few to be worth a cache of its own, as
buckets are multiples of 32. :class:`Qwen3Encoder` serves, on the same operations as the transformer;
:func:`build_model` is transformers' own module, which trains. Source: Qwen3, arXiv 2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.precision import Activation, Projection, add_normalize, gate, normalize, takes_rows
from twinshot_engine.weights import Slot, StoredPart, pack, same_names
from twinshot_kernels import attention, qk_norm_rotary


def read_config(config: Mapping[str, Any]) -> Qwen3Config:
    """Read a ``config.json``, leaving out the last layer, which Z-Image does not use.

    Args:
        config: whose ``num_hidden_layers`` counts the unused last layer, at least 2.

    Raises:
        ValueError: there are fewer than two layers, or the model is not a plain Qwen3.
    """
    if config.get("model_type") != "qwen3":
        raise ValueError(f"model_type {config.get('model_type')!r} is not supported: 'qwen3' is")
    layers = int(config["num_hidden_layers"]) - 1
    if layers < 1:
        raise ValueError(f"num_hidden_layers {layers + 1} is too few: at least 2 are needed")
    kinds = config.get("layer_types")
    if kinds and (unusual := sorted(set(kinds) - {"full_attention"})):
        raise ValueError(f"layer_types {unusual} are not supported: 'full_attention' is")
    for key, supported in (("attention_bias", False), ("hidden_act", "silu")):
        if config.get(key, supported) != supported:
            raise ValueError(f"{key} {config[key]!r} is not supported: {supported!r} is")
    return Qwen3Config(**{**config, "num_hidden_layers": layers, "layer_types": kinds and kinds[:layers]})


def kv_heads(config: Qwen3Config) -> int:
    """Heads of keys and values, each shared by some heads of queries; as many as those if not given."""
    return config.num_key_value_heads or config.num_attention_heads


def build_model(config: Mapping[str, Any]) -> Qwen3Model:
    """Build transformers' module of the layers that Z-Image uses, with fresh weights, for training.

    Raises:
        ValueError: as :func:`read_config`.
    """
    model = Qwen3Model(read_config(config))
    model.norm = nn.Identity()  # type: ignore[assignment]
    return model


class Qwen3Encoder(nn.Module):
    """The layers of a Qwen3 that Z-Image uses, in the form that serves: packed projections, no cache."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed right-padded token ids ``[B, L]`` as ``[B, L, hidden_size]``."""
        table = self._rotary_table(tokens.shape[1], tokens.device)
        x = self.embed_tokens(tokens)
        layers = cast("list[_Layer]", list(self.layers))
        h = layers[0].open(x)
        for layer, after in zip_longest(layers, layers[1:]):
            x, h = layer(x, h, table, after)
        return cast("Tensor", x)

    def _rotary_table(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if (tokens, device) not in self._tables:
            positions = torch.arange(tokens, device=device)[None]
            # Its frequencies are computed, not stored; fp32 whatever the weights are.
            rotary = Qwen3RotaryEmbedding(self.config).to(device)
            cos, sin = rotary(torch.empty(0, dtype=torch.float32, device=device), positions)
            half = cos.shape[-1] // 2  # the two halves are equal
            self._tables[tokens, device] = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        return self._tables[tokens, device]


class _Layer(nn.Module):
    """Pre-normed causal attention and SwiGLU; adding to the stream and normalising it are one operation."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        hidden, self.eps = config.hidden_size, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, kv_heads(config)
        self.to_qkv = Projection(hidden, (self.heads + 2 * self.kv_heads) * config.head_dim)
        self.to_out = Projection(self.heads * config.head_dim, hidden)
        self.gate_up = Projection(hidden, 2 * config.intermediate_size)
        self.down = Projection(config.intermediate_size, hidden)
        self.norm_q = nn.Parameter(torch.empty(config.head_dim))
        self.norm_k = nn.Parameter(torch.empty(config.head_dim))
        self.norm1 = nn.Parameter(torch.empty(hidden))
        self.norm2 = nn.Parameter(torch.empty(hidden))

    def open(self, x: Tensor) -> Activation:
        """Normalise the stream for this layer, where no layer before it did."""
        return normalize(x, self.norm1, self.eps, quantized=takes_rows(self.to_qkv))

    def forward(
        self, x: Tensor, h: Activation, table: tuple[Tensor, Tensor], after: _Layer | None
    ) -> tuple[Tensor, Activation]:
        """Refine the stream ``x`` and normalise it for the layer ``after``."""
        mixed = self._attend(h, table)
        x, h = add_normalize(x, mixed, self.norm2, self.eps, quantized=takes_rows(self.gate_up))
        widened = self.down(gate(self.gate_up(h), quantized=takes_rows(self.down)))
        if after is None:
            x = x + widened
            return x, x
        return add_normalize(x, widened, after.norm1, self.eps, quantized=takes_rows(after.to_qkv))

    def _attend(self, h: Activation, table: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = qk_norm_rotary(
            self.to_qkv(h),
            self.norm_q,
            self.norm_k,
            *table,
            self.eps,
            heads=self.heads,
            kv_heads=self.kv_heads,
            interleaved=False,
        )
        out: Tensor = self.to_out(attention(query, key, value, causal=True).flatten(-2))
        return out


_STORED = {
    "to_out.weight": "self_attn.o_proj.weight",
    "down.weight": "mlp.down_proj.weight",
    "norm_q": "self_attn.q_norm.weight",
    "norm_k": "self_attn.k_norm.weight",
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
}
"""What transformers calls a layer's parameters that are not packed."""


def find_encoder(checkpoint: Checkpoint) -> StoredPart:
    """Read the headers of a stored Qwen3, whether or not it has a language-model head.

    Raises:
        CheckpointError: as :meth:`~twinshot_engine.checkpoint.Checkpoint.part`.
    """
    layers = int(checkpoint.read_json("text_encoder", "config.json")["num_hidden_layers"])
    unused = (f"layers.{layers - 1}.", "norm.", "lm_head.")
    return checkpoint.part(
        "text_encoder",
        rename=lambda name: name.removeprefix("model."),
        ignored=lambda name: name.startswith(unused),
    )


def encoder_slots(encoder: Qwen3Encoder) -> dict[str, Slot]:
    """Slots of an encoder's parameters under transformers' names, without the prefix ``model.``."""
    slots = same_names(encoder)
    config = encoder.config
    sizes = {"q": config.num_attention_heads, "k": kv_heads(config), "v": kv_heads(config)}
    heads = {part: count * config.head_dim for part, count in sizes.items()}
    for index in range(config.num_hidden_layers):
        layer = f"layers.{index}."
        for ours, theirs in _STORED.items():
            slots[layer + theirs] = slots.pop(layer + ours)
        attention_parts = [(f"{layer}self_attn.{part}_proj.weight", rows) for part, rows in heads.items()]
        pack(slots, f"{layer}to_qkv.weight", attention_parts)
        halves = [(f"{layer}mlp.{part}_proj.weight", config.intermediate_size) for part in ("gate", "up")]
        pack(slots, f"{layer}gate_up.weight", halves)
    return slots
