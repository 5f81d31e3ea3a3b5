"""From an open checkpoint to the folded transformer that serves it.

``adaLN`` and the time embedders are read once, turned into the table of a closed schedule and dropped: they
never stay on the device. Query, key and value projections become one, and so do the two of SwiGLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twinshot_engine.schedule import single_time
from twinshot_engine.transformer.config import CHANNEL_MULTIPLE, SingleStreamConfig
from twinshot_engine.transformer.single_stream import FoldedTransformer, SingleStreamTransformer
from twinshot_engine.weights import Slot, StoredPart, pack, same_names

Times = Sequence[tuple[float, float]]
"""Pairs of current and target time."""

_SECOND_EMBEDDER = "t_embedder_2."
_TIME = ("t_embedder.", _SECOND_EMBEDDER, "adaLN_modulation.")
_NORMS = ("attention_norm1.", "attention_norm2.", "ffn_norm1.", "ffn_norm2.")


def is_time(name: str) -> bool:
    """Say whether a stored tensor only serves to make the table."""
    if any(part in name for part in _TIME):
        return True
    return name.startswith(("layers.", "noise_refiner.")) and any(part in name for part in _NORMS)


def has_second_embedder(stored: StoredPart) -> bool:
    """Whether TwinFlow's second time embedder is there; a plain Z-Image has none."""
    return any(name.startswith(_SECOND_EMBEDDER) for name in stored.headers)


def open_form(config: SingleStreamConfig) -> SingleStreamTransformer:
    """Build the open form on the meta device."""
    with torch.device("meta"):
        return SingleStreamTransformer(config)


def time_slots(unfolded: SingleStreamTransformer) -> dict[str, Slot]:
    """Slots of the parameters that :func:`fold_times` reads."""
    return {name: slot for name, slot in same_names(unfolded).items() if is_time(name)}


def folded_slots(transformer: FoldedTransformer) -> dict[str, Slot]:
    """Slots of a folded transformer's parameters under the names an open checkpoint stores."""
    slots = same_names(transformer)
    dim, hidden = transformer.config.dim, transformer.config.ffn_channels
    for name, _ in transformer.named_parameters():
        if name.endswith("attention.to_qkv.weight"):
            stem = name.removesuffix("to_qkv.weight")
            pack(slots, name, [(f"{stem}to_{part}.weight", dim) for part in "qkv"])
        elif name.endswith("feed_forward.w13.weight"):
            stem = name.removesuffix("w13.weight")
            pack(slots, name, [(f"{stem}w{part}.weight", hidden) for part in "13"], CHANNEL_MULTIPLE)
        elif name.endswith("feed_forward.w2.weight"):
            slots[name] = Slot(name, columns=slice(0, hidden))
    return slots


@torch.no_grad()
def fold_times(unfolded: SingleStreamTransformer, times: Times) -> Tensor:
    """Compute the table of a closed schedule.

    Args:
        unfolded: the open form; only its time embedders, adaLN and norms need values.
        times: the pairs, one for each row.

    Returns:
        ``[T, V, dim]`` fp32; see :class:`~twinshot_engine.transformer.modulation.StreamModulation`.
    """
    if unfolded.t_embedder_2 is None:
        times = [(single_time(now, target), 0.0) for now, target in times]
    device = unfolded.t_embedder.mlp[0].get_parameter("weight").device
    t, target_t = torch.tensor(times, dtype=torch.float64, device=device).unsqueeze(-1).unbind(1)
    rows = [
        unfolded.modulate(unfolded.embed_time(now, target)).pack()
        for now, target in zip(t, target_t, strict=True)
    ]
    return torch.stack(rows)


def read_times(stored: StoredPart, config: SingleStreamConfig, times: Times, device: torch.device) -> Tensor:
    """Read what makes the table, make it on ``device``, and let go of the rest.

    Raises:
        CheckpointError: a file is damaged.
    """
    unfolded = open_form(config)
    slots = time_slots(unfolded)
    # On the CPU a tensor is a view of the file: unaligned, and at the mercy of whoever changes the file.
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in stored.read(slots, device)}
    unfolded.load_state_dict(weights, strict=False, assign=True)
    return fold_times(unfolded, times)
