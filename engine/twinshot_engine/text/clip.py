"""CLIP's text encoders as Stable Diffusion 3 reads them: the hidden states before the last layer, and a pool.

The pooled embedding is that of the end token behind the last layer, normed and projected. Attention is
causal, and prompts are padded to the length that the encoder was trained with.
Source: Radford et al., arXiv 2103.00020; the layout is transformers' ``CLIPTextModelWithProjection``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.precision import (
    Activation,
    Projection,
    gate_add_modulate,
    modulate,
    takes_rows,
)
from twinshot_engine.text.words import WordTable
from twinshot_engine.weights import Slot, StoredPart, pack, same_names
from twinshot_kernels import attention

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
_WRONG_END_TOKEN = 2
"""What configs say that were written before transformers knew; there the end token has the largest id."""


@dataclass(frozen=True)
class ClipConfig:
    """Sizes and constants of a :class:`ClipEncoder`; names are those of transformers' ``config.json``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    projection_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    hidden_act: str
    layer_norm_eps: float
    eos_token_id: int


def read_config(config: Mapping[str, Any]) -> ClipConfig:
    """Read a ``config.json``; absent keys take transformers' defaults.

    Raises:
        ValueError: the model is not a CLIP text model of at least two layers with a known activation.
    """
    if config.get("model_type") != "clip_text_model":
        raise ValueError(f"model_type {config.get('model_type')!r} is not supported: 'clip_text_model' is")
    whole = CLIPTextConfig(**config)
    read = ClipConfig(**{field.name: getattr(whole, field.name) for field in fields(ClipConfig)})
    if read.hidden_act not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act {read.hidden_act!r} is not supported: {', '.join(map(repr, _ACTIVATIONS))} are"
        )
    if read.num_hidden_layers < 2:
        raise ValueError(f"num_hidden_layers {read.num_hidden_layers} is too few: at least 2 are needed")
    return read


class ClipEncoder(nn.Module):
    """A CLIP text encoder in the form that serves: packed projections."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.token_embedding = WordTable(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, width))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = _Norm(width, config.layer_norm_eps)
        self.text_projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embed token ids ``[B, L]``.

        Returns:
            Hidden states before the last layer ``[B, L, width]``, and the pooled embedding
            ``[B, projection_dim]``.
        """
        layers = cast("list[_Layer]", list(self.layers))
        ones = torch.ones(self.config.hidden_size, device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding[: tokens.shape[1]]
        h = layers[0].norm1(x, quantized=takes_rows(layers[0].to_qkv))
        norms = [*(layer.norm1 for layer in layers[1:]), self.final_norm]
        rows = [*(takes_rows(layer.to_qkv) for layer in layers[1:]), False]
        hidden = x
        for layer, norm, rows_ahead in zip(layers, norms, rows, strict=True):
            hidden = x
            x, h = layer(x, h, ones, norm, rows_ahead=rows_ahead)
        end = self._end_of_prompt(tokens)
        pooled: Tensor = self.text_projection(h[torch.arange(tokens.shape[0], device=tokens.device), end])
        return hidden, pooled

    def _end_of_prompt(self, tokens: Tensor) -> Tensor:
        """Find the first end token of each row."""
        end = self.config.eos_token_id
        return (tokens if end == _WRONG_END_TOKEN else tokens.eq(end).int()).argmax(-1)


class _Norm(nn.Module):
    """Layer norm with learned scale and shift."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, *, quantized: bool) -> Activation:
        """Normalise ``[..., width]``."""
        return modulate(x, self.weight, self.bias, self.eps, quantized=quantized)


class _Layer(nn.Module):
    """Pre-normed causal attention and an MLP; adding to the stream and normalising it are one operation."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.activate = _ACTIVATIONS[config.hidden_act]
        self.to_qkv = Projection(width, 3 * width, bias=True)
        self.to_out = Projection(width, width, bias=True)
        self.up = Projection(width, config.intermediate_size, bias=True)
        self.down = Projection(config.intermediate_size, width, bias=True)
        self.norm1 = _Norm(width, config.layer_norm_eps)
        self.norm2 = _Norm(width, config.layer_norm_eps)

    def forward(
        self, x: Tensor, h: Activation, ones: Tensor, ahead: _Norm, *, rows_ahead: bool
    ) -> tuple[Tensor, Activation]:
        """Refine the stream ``x``, and normalise it by ``ahead`` for whoever comes next."""
        query, key, value = self.to_qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = self.to_out(attention(query, key, value, causal=True).flatten(-2))
        x, h = _add_normalize(x, mixed, ones, self.norm2, quantized=takes_rows(self.up))
        widened = self.down(self.activate(self.up(h)))
        return _add_normalize(x, widened, ones, ahead, quantized=rows_ahead)


def _add_normalize(
    x: Tensor, y: Tensor, ones: Tensor, norm: _Norm, *, quantized: bool
) -> tuple[Tensor, Activation]:
    return gate_add_modulate(x, y, ones, norm.weight, norm.bias, norm.eps, quantized=quantized)


_STORED = {
    "to_out": "self_attn.out_proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
"""What transformers calls a layer's parts that are not packed."""


def find_encoder(checkpoint: Checkpoint, name: str) -> StoredPart:
    """Read the headers of a stored CLIP text encoder.

    Raises:
        CheckpointError: as :func:`~twinshot_engine.weights.find_part`.
    """
    return checkpoint.part(name, ignored=lambda key: key.endswith("embeddings.position_ids"))


def encoder_slots(encoder: ClipEncoder) -> dict[str, Slot]:
    """Slots of an encoder's parameters under transformers' names."""
    slots, width = same_names(encoder), encoder.config.hidden_size
    slots["text_model.embeddings.token_embedding.weight"] = slots.pop("token_embedding.weight")
    slots["text_model.embeddings.position_embedding.weight"] = slots.pop("position_embedding")
    for kind in ("weight", "bias"):
        slots[f"text_model.final_layer_norm.{kind}"] = slots.pop(f"final_norm.{kind}")
        for index in range(encoder.config.num_hidden_layers):
            ours, theirs = f"layers.{index}.", f"text_model.encoder.layers.{index}."
            for name, stored in _STORED.items():
                slots[f"{theirs}{stored}.{kind}"] = slots.pop(f"{ours}{name}.{kind}")
            parts = [(f"{theirs}self_attn.{part}_proj.{kind}", width) for part in "qkv"]
            pack(slots, f"{ours}to_qkv.{kind}", parts)
    return slots
