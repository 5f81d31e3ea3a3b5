"""From a stored ``QwenImageTransformer2DModel`` to the form that serves.

The adaLN layers, a third of all parameters, are read one tensor at a time, turned into their lines of the
table of a closed schedule and dropped: no more than one of them is ever on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_engine.schedule import single_time
from twinshot_engine.transformer.dual_stream import DualStreamTransformer
from twinshot_engine.transformer.dual_stream_config import TIME_FREQUENCIES, DualStreamConfig
from twinshot_engine.transformer.dual_stream_modulation import (
    VECTORS_PER_BLOCK,
    VECTORS_PER_STREAM,
    scale_rows,
)
from twinshot_engine.transformer.time_embedding import sinusoid
from twinshot_engine.weights import Slot, StoredPart, pack, same_names

Times = Sequence[tuple[float, float]]
"""Pairs of current and target time."""

_FIRST, _SECOND = "time_text_embed.timestep_embedder", "time_text_embed_2.timestep_embedder"
_FINAL = "norm_out.linear"
_TIME_SCALE = 1000

_LAYERS = {
    "image.to_out": "attn.to_out.0",
    "image.mlp.up": "img_mlp.net.0.proj",
    "image.mlp.down": "img_mlp.net.2",
    "text.to_out": "attn.to_add_out",
    "text.mlp.up": "txt_mlp.net.0.proj",
    "text.mlp.down": "txt_mlp.net.2",
}
"""What diffusers calls a block's layers that are not packed."""

_PACKED = {
    "image.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "text.to_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")


def has_second_embedder(stored: StoredPart) -> bool:
    """Whether TwinFlow's second time embedder is there; plain and LoRA-merged checkpoints have none."""
    return any(name.startswith(_SECOND) for name in stored.headers)


def is_time(name: str) -> bool:
    """Say whether a stored tensor only serves to make the table."""
    return name.startswith(("time_text_embed", "norm_out.")) or ".img_mod." in name or ".txt_mod." in name


def is_unread(name: str, config: DualStreamConfig) -> bool:
    """Say whether a stored tensor is not read into the serving form: time's, and the text's last outputs."""
    last = f"transformer_blocks.{config.num_layers - 1}."
    return is_time(name) or name.startswith((f"{last}attn.to_add_out.", f"{last}txt_mlp."))


def unread_shapes(config: DualStreamConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the stored tensors that :func:`is_unread` names."""
    last = f"transformer_blocks.{config.num_layers - 1}."
    dim, hidden = config.dim, config.ffn_channels
    layers = {
        f"{last}attn.to_add_out": (dim, dim),
        f"{last}txt_mlp.net.0.proj": (hidden, dim),
        f"{last}txt_mlp.net.2": (dim, hidden),
    }
    return time_shapes(config) | _linear_shapes(layers)


def time_shapes(config: DualStreamConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the stored tensors that make the table."""
    dim = config.dim
    layers = {_FINAL: (2 * dim, dim)} | dict.fromkeys(_adaln_lines(config), (6 * dim, dim))
    for stem in _embedders(config):
        layers |= {f"{stem}.linear_1": (dim, TIME_FREQUENCIES), f"{stem}.linear_2": (dim, dim)}
    return _linear_shapes(layers)


def transformer_slots(transformer: DualStreamTransformer) -> dict[str, Slot]:
    """Slots of a serving transformer's parameters under the names that diffusers stores."""
    slots = same_names(transformer)
    dim, size = transformer.config.dim, transformer.config.attention_head_dim
    for index in range(transformer.config.num_layers):
        ours, theirs = f"blocks.{index}.", f"transformer_blocks.{index}."
        for kind in ("weight", "bias"):
            for name, stored in _LAYERS.items():
                if (slot := slots.pop(f"{ours}{name}.{kind}", None)) is not None:
                    slots[f"{theirs}{stored}.{kind}"] = slot
            for name, parts in _PACKED.items():
                pack(slots, f"{ours}{name}.{kind}", [(f"{theirs}{part}.{kind}", dim) for part in parts])
        pack(slots, f"{ours}scales", [(f"{theirs}{norm}.weight", size) for norm in _NORMS])
    return slots


class _Embedder(NamedTuple):
    """Weights of a time embedder, fp32."""

    weight_1: Tensor
    bias_1: Tensor
    weight_2: Tensor
    bias_2: Tensor

    def embed(self, times: Tensor) -> Tensor:
        """Embed times ``[T]`` of any sign as ``[T, dim]``."""
        hidden = functional.linear(sinusoid(times * _TIME_SCALE), self.weight_1, self.bias_1)
        return functional.linear(functional.silu(hidden), self.weight_2, self.bias_2)


@torch.no_grad()
def read_table(stored: StoredPart, config: DualStreamConfig, times: Times, device: torch.device) -> Tensor:
    """Make the table of a closed schedule on ``device``, reading one adaLN layer after another.

    Args:
        stored: the checkpoint's transformer.
        config: its sizes.
        times: the pairs, one for each row.
        device: where to.

    Returns:
        ``[T, V, dim]`` fp32; see :class:`~.dual_stream_modulation.DualStreamModulation`.

    Raises:
        CheckpointError: a file is damaged.
    """
    embedding = functional.silu(_embed_times(stored, config, times, device))
    table = torch.zeros(len(times), config.num_layers * VECTORS_PER_BLOCK + 2, config.dim, device=device)
    table[:, scale_rows(config.num_layers)] = 1.0
    lines = _adaln_lines(config) | {_FINAL: slice(-2, None)}
    for name, tensor in stored.read([f"{layer}.{kind}" for layer in lines for kind in _KINDS], device):
        layer, kind = name.rsplit(".", 1)
        raw = tensor.float() if kind == "bias" else embedding @ tensor.float().T
        part = table[:, lines[layer]]
        part += raw.view(-1, *part.shape[1:])
    return table


_KINDS = ("weight", "bias")


def _embed_times(stored: StoredPart, config: DualStreamConfig, times: Times, device: torch.device) -> Tensor:
    """Embed pairs of times as the released wrapper does: ``E(t) + E2(target) (t - target)``."""
    names = [f"{stem}.{layer}.{kind}" for stem in _embedders(config) for layer in _ORDER for kind in _KINDS]
    # On the CPU a tensor is a view of the file: unaligned, and at the mercy of whoever changes the file.
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in stored.read(names, device)}
    if not config.second_time_embedder:
        times = [(single_time(*pair), 0.0) for pair in times]
    now, target = torch.tensor(times, dtype=torch.float32, device=device).unbind(1)
    embedding = _embedder(weights, _FIRST).embed(now)
    if config.second_time_embedder:
        embedding = embedding + _embedder(weights, _SECOND).embed(target) * (now - target)[:, None]
    return embedding


_ORDER = ("linear_1", "linear_2")


def _embedder(weights: dict[str, Tensor], stem: str) -> _Embedder:
    return _Embedder(*(weights[f"{stem}.{layer}.{kind}"] for layer in _ORDER for kind in _KINDS))


def _embedders(config: DualStreamConfig) -> tuple[str, ...]:
    return (_FIRST, _SECOND) if config.second_time_embedder else (_FIRST,)


def _adaln_lines(config: DualStreamConfig) -> dict[str, slice]:
    """Which vectors of a packed row each block's adaLN layers make."""
    lines = {}
    for index in range(config.num_layers):
        for place, stream in enumerate(("img_mod", "txt_mod")):
            first = index * VECTORS_PER_BLOCK + place * VECTORS_PER_STREAM
            lines[f"transformer_blocks.{index}.{stream}.1"] = slice(first, first + VECTORS_PER_STREAM)
    return lines


def _linear_shapes(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in layers.items()}
