"""Gemma 2 as SANA reads it: the last hidden states of a prompt behind a constant instruction.

The instruction is the same for all prompts and attention is causal, so its keys and values are computed once,
at load. Padding stands on the right, where no real token sees it. :class:`Gemma2Encoder` serves;
:func:`build_model` is transformers' own module, which names what checkpoints store.
Source: Gemma Team, arXiv 2408.00118.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model
from transformers.models.gemma2.modeling_gemma2 import Gemma2RotaryEmbedding

from twinshot_engine.precision import (
    Activation,
    Projection,
    gate_add_normalize,
    gate_gelu,
    normalize,
    takes_rows,
)
from twinshot_engine.tables import keep
from twinshot_engine.text.words import WordTable
from twinshot_engine.weights import Slot, pack, same_names
from twinshot_kernels import capped_attention, qk_norm_rotary

_SUPPORTED = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def read_config(config: Mapping[str, Any]) -> Gemma2Config:
    """Read a ``config.json``.

    Raises:
        ValueError: the model is not a plain Gemma 2.
    """
    if config.get("model_type") != "gemma2":
        raise ValueError(f"model_type {config.get('model_type')!r} is not supported: 'gemma2' is")
    for key, supported in _SUPPORTED.items():
        if config.get(key, supported) != supported:
            raise ValueError(f"{key} {config[key]!r} is not supported: {supported!r} is")
    if config.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is not supported")
    read = Gemma2Config(**config)
    if not read.attn_logit_softcapping:
        raise ValueError(f"attn_logit_softcapping {read.attn_logit_softcapping!r} is not above 0")
    return read


def build_model(config: Mapping[str, Any]) -> Gemma2Model:
    """Build transformers' module.

    Raises:
        ValueError: as :func:`read_config`.
    """
    return Gemma2Model(read_config(config))


class Prefix(NamedTuple):
    """Keys and values ``[P, heads, D]`` of the tokens before a prompt's own."""

    key: Tensor
    value: Tensor


class Gemma2Encoder(nn.Module):
    """A Gemma 2 body in the form that serves: packed projections, and a prefix instead of a cache."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = WordTable(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config, kind) for kind in config.layer_types or ())
        self.norm = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        self.prefix: list[Prefix] = []
        self.first_state = torch.empty(0)
        self._tables: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def widen_norms(self) -> None:
        """Make the norms fp32, whatever the module's type, so that adding 1 to them rounds nothing."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                self.get_submodule(name.rpartition(".")[0]).register_parameter(
                    name.rpartition(".")[2], nn.Parameter(parameter.float(), requires_grad=False)
                )

    @torch.inference_mode()
    def fold(self, prefix: Tensor) -> None:
        """Add the 1 that Gemma's norms are stored without, and remember a prefix.

        Args:
            prefix: token ids ``[1, P]`` that come before those of every prompt.
        """
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(1)
        if self.embed_tokens.weight.is_meta:
            prefix = prefix.to("meta")  # of weights that are not read nothing is remembered but its shape
        shape = (0, self.config.num_key_value_heads, self.config.head_dim)
        empty = torch.empty(shape, dtype=self.embed_tokens.weight.dtype, device=prefix.device)
        nothing = Prefix(empty, empty)
        states, made = self._run(prefix, [nothing] * len(self.layers))
        self.prefix = [Prefix(key[0].clone(), value[0].clone()) for key, value in made]
        self.first_state = states[:, :1].clone()

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed right-padded token ids ``[B, L]`` behind the prefix as ``[B, L, hidden_size]``."""
        states, _ = self._run(tokens, self.prefix)
        return states

    def _run(self, tokens: Tensor, prefix: list[Prefix]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return hidden states, and the keys and values of ``tokens`` in each layer."""
        layers = cast("list[_Layer]", list(self.layers))
        table = self._rotary_table(len(prefix[0].key), tokens.shape[1], tokens.device)
        # transformers rounds the factor to the type of the weights.
        factor = float(torch.tensor(self.config.hidden_size**0.5, dtype=self.embed_tokens.weight.dtype))
        x = self.embed_tokens(tokens, factor)
        h = layers[0].open(x)
        made = []
        for layer, after, before in zip_longest(layers, layers[1:], prefix):
            own, branch = layer.attend(h, table, before)
            made.append(own)
            scale = self.norm if after is None else after.get_parameter("before_attention")
            x, h = layer(x, branch, scale, rows_ahead=after is not None and takes_rows(after.to_qkv))
        return cast("Tensor", h), made

    def _rotary_table(self, start: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        def build() -> tuple[Tensor, Tensor]:
            positions = torch.arange(start, start + tokens, device=device)[None]
            # Its frequencies are computed, not stored; fp32 whatever the weights are.
            rotary = Gemma2RotaryEmbedding(self.config).to(device)
            cos, sin = rotary(torch.empty(0, dtype=torch.float32, device=device), positions)
            half = cos.shape[-1] // 2  # the two halves are equal
            return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()

        return keep(self._tables, (start, tokens, device), build)


class _Layer(nn.Module):
    """Attention and GeGLU, each between two norms; adding to the stream and normalising it are one."""

    def __init__(self, config: Gemma2Config, kind: str) -> None:
        super().__init__()
        hidden, self.eps = config.hidden_size, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = config.query_pre_attn_scalar**-0.5
        self.cap = float(config.attn_logit_softcapping or 0)
        everything = config.max_position_embeddings
        self.window = config.sliding_window or everything if kind == "sliding_attention" else everything
        self.to_qkv = Projection(hidden, (self.heads + 2 * self.kv_heads) * config.head_dim)
        self.to_out = Projection(self.heads * config.head_dim, hidden)
        self.gate_up = Projection(hidden, 2 * config.intermediate_size)
        self.down = Projection(config.intermediate_size, hidden)
        for name in _NORMS:
            self.register_parameter(name, nn.Parameter(torch.empty(hidden), requires_grad=False))

    def open(self, x: Tensor) -> Activation:
        """Normalise the stream for this layer, where no layer before it did."""
        scale = self.get_parameter("before_attention")
        return normalize(x, scale, self.eps, quantized=takes_rows(self.to_qkv))

    def forward(
        self, x: Tensor, branch: Tensor, scale_ahead: Tensor, *, rows_ahead: bool
    ) -> tuple[Tensor, Activation]:
        """Add what attention made to the stream, refine it and normalise it for the layer ahead."""
        x, h = gate_add_normalize(
            x,
            branch,
            self.get_parameter("after_attention"),
            self.get_parameter("before_ffn"),
            self.eps,
            quantized=takes_rows(self.gate_up),
        )
        widened = self.down(gate_gelu(self.gate_up(h), quantized=takes_rows(self.down)))
        gain = self.get_parameter("after_ffn")
        return gate_add_normalize(x, widened, gain, scale_ahead, self.eps, quantized=rows_ahead)

    def attend(
        self, h: Activation, table: tuple[Tensor, Tensor], prefix: Prefix
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Mix tokens with the prefix and those before them; returns keys and values, and the mixture."""
        query, key, value = qk_norm_rotary(
            self.to_qkv(h),
            None,
            None,
            *table,
            self.eps,
            heads=self.heads,
            kv_heads=self.kv_heads,
            interleaved=False,
        )
        mixed = capped_attention(
            query, key, value, *prefix, scale=self.scale, cap=self.cap, window=self.window
        )
        return (key, value), self.to_out(mixed.flatten(-2))


_NORMS = {
    "before_attention": "input_layernorm.weight",
    "after_attention": "post_attention_layernorm.weight",
    "before_ffn": "pre_feedforward_layernorm.weight",
    "after_ffn": "post_feedforward_layernorm.weight",
}
"""What transformers calls a layer's norms."""

_STORED = _NORMS | {"to_out.weight": "self_attn.o_proj.weight", "down.weight": "mlp.down_proj.weight"}


def encoder_slots(encoder: Gemma2Encoder) -> dict[str, Slot]:
    """Slots of an encoder's parameters under transformers' names, without the prefix ``model.``."""
    slots = same_names(encoder)
    slots["norm.weight"] = slots.pop("norm")
    config = encoder.config
    sizes = {
        "q": config.num_attention_heads,
        "k": config.num_key_value_heads,
        "v": config.num_key_value_heads,
    }
    for index in range(len(encoder.layers)):
        layer = f"layers.{index}."
        for ours, theirs in _STORED.items():
            slots[layer + theirs] = slots.pop(layer + ours)
        heads = [
            (f"{layer}self_attn.{part}_proj.weight", count * config.head_dim) for part, count in sizes.items()
        ]
        pack(slots, f"{layer}to_qkv.weight", heads)
        halves = [(f"{layer}mlp.{part}_proj.weight", config.intermediate_size) for part in ("gate", "up")]
        pack(slots, f"{layer}gate_up.weight", halves)
    return slots
