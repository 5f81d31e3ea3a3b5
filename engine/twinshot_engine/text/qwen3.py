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
from twinshot_engine.tables import keep
from twinshot_engine.text.decoder_layer import DecoderLayer, LayerSizes, rename_layer
from twinshot_engine.text.words import WordTable
from twinshot_engine.weights import Slot, StoredPart, same_names


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


def layer_sizes(config: Qwen3Config) -> LayerSizes:
    """Sizes of each layer."""
    return LayerSizes(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=kv_heads(config),
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
        qk_norm=True,
        qkv_bias=False,
    )


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
        self.embed_tokens = WordTable(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(layer_sizes(config)) for _ in range(config.num_hidden_layers)
        )
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed right-padded token ids ``[B, L]`` as ``[B, L, hidden_size]``."""
        table = self._rotary_table(tokens.shape[1], tokens.device)
        x = self.embed_tokens(tokens)
        layers = cast("list[DecoderLayer]", list(self.layers))
        h = layers[0].open(x)
        for layer, after in zip_longest(layers, layers[1:]):
            x, h, _ = layer(x, h, table, after and after.entry)
        return cast("Tensor", x)

    def _rotary_table(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return keep(self._tables, (tokens, device), lambda: self._build_table(tokens, device))

    def _build_table(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        positions = torch.arange(tokens, device=device)[None]
        # Its frequencies are computed, not stored; fp32 whatever the weights are.
        rotary = Qwen3RotaryEmbedding(self.config).to(device)
        cos, sin = rotary(torch.empty(0, dtype=torch.float32, device=device), positions)
        half = cos.shape[-1] // 2  # the two halves are equal
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


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
    for index in range(encoder.config.num_hidden_layers):
        rename_layer(slots, f"layers.{index}.", layer_sizes(encoder.config))
    return slots
