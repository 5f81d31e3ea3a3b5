"""The language model of Qwen2.5-VL as Qwen-Image reads it: its last hidden states, behind the final norm.

Neither the vision tower nor the language-model head is built or read. Text gives all three axes of its rotary
embedding the same positions, so that it is a plain one. Every prompt stands behind the same system message,
whose hidden states nobody reads: its first tokens go through the layers once, at load, and prompts attend to
the keys and values that are kept of them. Source: arXiv 2502.13923 (Qwen2.5-VL), 2508.02324 (Qwen-Image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.tables import keep
from twinshot_engine.text.decoder_layer import (
    Ahead,
    DecoderLayer,
    KeyValues,
    LayerSizes,
    RotaryLines,
    rename_layer,
)
from twinshot_engine.text.words import WordTable
from twinshot_engine.weights import Slot, StoredPart, same_names

_MODEL_TYPES = ("qwen2_5_vl", "qwen2_5_vl_text")
_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
_UNUSED = ("visual.", "lm_head.")


def read_config(config: Mapping[str, Any]) -> Qwen2_5_VLTextConfig:
    """Read the language model's part of a ``config.json``, old or new.

    Raises:
        ValueError: it is not a plain Qwen2.5-VL.
    """
    if config.get("model_type") not in _MODEL_TYPES:
        raise ValueError(f"model_type {config.get('model_type')!r} is not supported: {_MODEL_TYPES[0]!r} is")
    kind = Qwen2_5_VLConfig if config["model_type"] == _MODEL_TYPES[0] else Qwen2_5_VLTextConfig
    text = cast("Qwen2_5_VLTextConfig", kind.from_dict(dict(config)).get_text_config())
    if unusual := sorted(set(text.layer_types or []) - {"full_attention"}):
        raise ValueError(f"layer_types {unusual} are not supported: 'full_attention' is")
    if text.hidden_act != "silu":
        raise ValueError(f"hidden_act {text.hidden_act!r} is not supported: 'silu' is")
    if (kind_of_rope := _rope(text).get("rope_type", "default")) != "default":
        raise ValueError(f"rope_type {kind_of_rope!r} is not supported: 'default' is")
    return text


def layer_sizes(config: Qwen2_5_VLTextConfig) -> LayerSizes:
    """Sizes of each layer."""
    return LayerSizes(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        eps=config.rms_norm_eps,
        qk_norm=False,
        qkv_bias=True,
    )


class Qwen25VLEncoder(nn.Module):
    """The language model, in the form that serves: packed projections, a constant beginning."""

    kept: Tensor
    """``[layers, 2, P, kv_heads, head_dim]``: keys and values of the P tokens before every prompt."""

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        self.config = config
        self.sizes = layer_sizes(config)
        self.embed_tokens = WordTable(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(self.sizes) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.empty(config.hidden_size))
        self.register_buffer("kept", None, persistent=False)
        self._tables: dict[tuple[int, int, torch.device], RotaryLines] = {}

    @torch.no_grad()
    def keep(self, tokens: Sequence[int]) -> None:
        """Run the tokens that stand before every prompt, and keep what prompts need of them."""
        ids = torch.tensor([list(tokens)], device=self.norm.device)
        _, key_values = self._run(ids, [None] * len(self.layers), 0)
        self.kept = torch.stack([torch.stack([part[0] for part in pair]) for pair in key_values])

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed right-padded token ids ``[B, L]``, which follow the kept ones, as ``[B, L, hidden_size]``."""
        batch = tokens.shape[0]
        before = [
            KeyValues(*(part.expand(batch, *part.shape) for part in pair.unbind()))
            for pair in self.kept.unbind()
        ]
        return self._run(tokens, before, self.kept.shape[2])[0]

    def _run(
        self, tokens: Tensor, before: Sequence[KeyValues | None], first: int
    ) -> tuple[Tensor, list[KeyValues]]:
        """Run tokens whose positions begin at ``first``; returns the normed stream and what to keep."""
        table = self._rotary_lines(first, tokens.shape[1], tokens.device)
        x = self.embed_tokens(tokens)
        layers = cast("list[DecoderLayer]", list(self.layers))
        ahead = [*(layer.entry for layer in layers[1:]), Ahead(self.norm, rows=False)]
        h, key_values = layers[0].open(x), []
        for layer, after, earlier in zip(layers, ahead, before, strict=True):
            x, h, own = layer(x, h, table, after, earlier)
            key_values.append(own)
        return cast("Tensor", h), key_values

    def _rotary_lines(self, first: int, count: int, device: torch.device) -> RotaryLines:
        def build() -> RotaryLines:
            width = self.sizes.head_dim
            steps = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
            positions = torch.arange(first, first + count, dtype=torch.float32, device=device)
            angles = torch.outer(positions, 1.0 / _rope(self.config)["rope_theta"] ** steps)
            return angles.cos(), angles.sin()

        return keep(self._tables, (first, count, device), build)


def find_encoder(checkpoint: Checkpoint) -> StoredPart:
    """Read the headers of a stored Qwen2.5-VL, whichever prefixes its version of transformers wrote.

    Raises:
        CheckpointError: as :func:`~twinshot_engine.weights.find_part`.
    """
    return checkpoint.part("text_encoder", rename=_rename, ignored=lambda name: name.startswith(_UNUSED))


def encoder_slots(encoder: Qwen25VLEncoder) -> dict[str, Slot]:
    """Slots of an encoder's parameters under transformers' names, without a prefix."""
    slots = same_names(encoder)
    slots["norm.weight"] = slots.pop("norm")
    for index in range(encoder.config.num_hidden_layers):
        rename_layer(slots, f"layers.{index}.", encoder.sizes)
    return slots


def _rename(name: str) -> str:
    name = name.removeprefix("model.") if name.startswith("model.visual.") else name
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _rope(config: Qwen2_5_VLTextConfig) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", config.rope_parameters)
