"""The layer that Qwen's language models repeat: pre-normed causal attention and SwiGLU.

Adding to the stream and normalising it are one operation, so a layer hands its successor what that reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from twinshot_engine.precision import Activation, Projection, add_normalize, gate, normalize, takes_rows
from twinshot_engine.weights import Slot, pack
from twinshot_kernels import attention, qk_norm_rotary

RotaryLines = tuple[Tensor, Tensor]
"""Cosines and sines, each ``[L, head_dim / 2]`` fp32, for the halves of a head."""


class LayerSizes(NamedTuple):
    """Sizes and constants of a :class:`DecoderLayer`.

    Attributes:
        hidden: channels of the stream.
        intermediate: inner width of the feed-forward layer.
        heads: of queries.
        kv_heads: of keys and of values, each shared by some heads of queries.
        head_dim: channels of a head.
        eps: of every norm.
        qk_norm: whether queries and keys are normalised (Qwen3).
        qkv_bias: whether their projections have biases (Qwen2).
    """

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    qk_norm: bool
    qkv_bias: bool


class KeyValues(NamedTuple):
    """Keys and values of some tokens in one layer, each ``[B, L, kv_heads, head_dim]``."""

    keys: Tensor
    values: Tensor


class Ahead(NamedTuple):
    """What comes behind a layer: the next norm's scale, and whether its output shall be quantised rows."""

    scale: Tensor
    rows: bool


class DecoderLayer(nn.Module):
    """One layer, with packed projections."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        hidden, width = sizes.hidden, sizes.head_dim
        outputs = (sizes.heads + 2 * sizes.kv_heads) * width
        self.to_qkv = Projection(hidden, outputs, bias=sizes.qkv_bias)
        self.to_out = Projection(sizes.heads * width, hidden)
        self.gate_up = Projection(hidden, 2 * sizes.intermediate)
        self.down = Projection(sizes.intermediate, hidden)
        self.norm_q = nn.Parameter(torch.empty(width)) if sizes.qk_norm else None
        self.norm_k = nn.Parameter(torch.empty(width)) if sizes.qk_norm else None
        self.norm1 = nn.Parameter(torch.empty(hidden))
        self.norm2 = nn.Parameter(torch.empty(hidden))

    @property
    def entry(self) -> Ahead:
        """What this layer is to whoever comes before it."""
        return Ahead(self.norm1, takes_rows(self.to_qkv))

    def open(self, x: Tensor) -> Activation:
        """Normalise the stream for this layer, where no layer before it did."""
        return normalize(x, self.norm1, self.sizes.eps, quantized=takes_rows(self.to_qkv))

    def forward(
        self,
        x: Tensor,
        h: Activation,
        table: RotaryLines,
        ahead: Ahead | None,
        before: KeyValues | None = None,
    ) -> tuple[Tensor, Activation, KeyValues]:
        """Refine the stream.

        Args:
            x: the stream ``[B, L, hidden]``.
            h: its normalised form.
            table: of the L tokens.
            ahead: what comes next; None if nobody reads a norm of the result.
            before: keys and values of earlier tokens, which are not in the stream.

        Returns:
            The new stream, what ``ahead`` reads, and the tokens' own keys and values.
        """
        query, own = self._project(h, table)
        seen = (
            own
            if before is None
            else KeyValues(*(torch.cat(pair, 1) for pair in zip(before, own, strict=True)))
        )
        mixed = self.to_out(attention(query, *seen, causal=True).flatten(-2))
        eps = self.sizes.eps
        x, h = add_normalize(x, mixed, self.norm2, eps, quantized=takes_rows(self.gate_up))
        widened = self.down(gate(self.gate_up(h), quantized=takes_rows(self.down)))
        if ahead is None:
            x = x + widened
            return x, x, own
        return *add_normalize(x, widened, ahead.scale, eps, quantized=ahead.rows), own

    def _project(self, h: Activation, table: RotaryLines) -> tuple[Tensor, KeyValues]:
        query, *key_value = qk_norm_rotary(
            self.to_qkv(h),
            self.norm_q,
            self.norm_k,
            *table,
            self.sizes.eps,
            heads=self.sizes.heads,
            kv_heads=self.sizes.kv_heads,
            interleaved=False,
        )
        return query, KeyValues(*key_value)


_STORED = {
    "to_out.weight": "self_attn.o_proj.weight",
    "down.weight": "mlp.down_proj.weight",
    "norm_q": "self_attn.q_norm.weight",
    "norm_k": "self_attn.k_norm.weight",
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
}
"""What transformers calls a layer's parameters that are not packed."""


def rename_layer(slots: dict[str, Slot], layer: str, sizes: LayerSizes) -> None:
    """Replace the slots of a layer's parameters by slots under transformers' names.

    Args:
        slots: changed in place.
        layer: the layer's name with a dot behind it, the same here and there.
        sizes: of the layer.
    """
    for ours, theirs in _STORED.items():
        if (slot := slots.pop(layer + ours, None)) is not None:
            slots[layer + theirs] = slot
    heads = {"q": sizes.heads, "k": sizes.kv_heads, "v": sizes.kv_heads}
    for kind in ("weight", "bias") if sizes.qkv_bias else ("weight",):
        parts = [(f"{layer}self_attn.{part}_proj.{kind}", n * sizes.head_dim) for part, n in heads.items()]
        pack(slots, f"{layer}to_qkv.{kind}", parts)
    halves = [(f"{layer}mlp.{part}_proj.weight", sizes.intermediate) for part in ("gate", "up")]
    pack(slots, f"{layer}gate_up.weight", halves)
