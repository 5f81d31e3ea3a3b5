"""From a checkpoint to the joint transformer that serves it.

Projections that read the same input become one, and so do all adaLN layers. The time embedders are read once,
turned into a row a pass and dropped; of the position embedding the middle is kept that the largest picture
reads (the published one has 384 x 384 positions, 453 MB in bf16).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from twinshot_engine.schedule import single_time
from twinshot_engine.transformer.joint_config import JointConfig
from twinshot_engine.transformer.joint_modulation import modulators
from twinshot_engine.transformer.joint_transformer import JointTransformer
from twinshot_engine.transformer.time_embedding import FREQUENCIES, sinusoid
from twinshot_engine.weights import Slot, StoredPart, pack, same_names

TIME_SCALE = 1000.0
"""What times are multiplied by before they are embedded."""

_POSITIONS = "pos_embed.pos_embed"
_FIRST, _SECOND = "time_text_embed", "time_text_embed_2"
_ATTENTION = {"to_qkv": ("to_q", "to_k", "to_v"), "add_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
_RENAMED = {
    "proj.": "pos_embed.proj.",
    "modulation.text_embedder.": f"{_FIRST}.text_embedder.",
    "modulation.text_embedder_2.": f"{_SECOND}.text_embedder.",
    ".to_out.": ".to_out.0.",
    ".up.": ".net.0.proj.",
    ".down.": ".net.2.",
}


def is_table(name: str) -> bool:
    """Say whether a stored tensor only serves to make a table at load."""
    return name == _POSITIONS or ".timestep_embedder." in name


def has_second_embedder(stored: StoredPart) -> bool:
    """Whether TwinFlow's second embedder is there; a plain Stable Diffusion 3 has none."""
    return any(name.startswith(f"{_SECOND}.") for name in stored.headers)


def table_shapes(config: JointConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the stored tensors that :func:`read_tables` reads, by name."""
    dim = config.dim
    shapes: dict[str, tuple[int, ...]] = {_POSITIONS: (1, config.pos_embed_max_size**2, dim)}
    for embedder in _embedders(config):
        stem = f"{embedder}.timestep_embedder.linear_"
        shapes |= {f"{stem}1.weight": (dim, FREQUENCIES), f"{stem}1.bias": (dim,)}
        shapes |= {f"{stem}2.weight": (dim, dim), f"{stem}2.bias": (dim,)}
    return shapes


def joint_slots(transformer: JointTransformer) -> dict[str, Slot]:
    """Slots of a transformer's parameters under the names a checkpoint stores."""
    slots, config = same_names(transformer), transformer.config
    for name in [*slots]:
        if name.endswith("attn.scales"):
            stem = name.removesuffix("scales")
            pack(slots, name, [(f"{stem}{norm}.weight", config.attention_head_dim) for norm in _NORMS])
        elif name.endswith((".norm_q", ".norm_k")):
            slots[f"{name}.weight"] = slots.pop(name)
        elif (packed := name.split(".")[-2]) in _ATTENTION:
            stem, kind = name.split(packed)
            pack(slots, name, [(f"{stem}{part}{kind}", config.dim) for part in _ATTENTION[packed]])
        elif (stored := _rename(name)) != name:
            slots[stored] = slots.pop(name)
    layers = [(each.name, len(each.vectors) * config.dim) for each in modulators(config)]
    pack(slots, "modulation.linear.weight", [(f"{name}.weight", rows) for name, rows in layers])
    pack(slots, "modulation.bias", [(f"{name}.bias", rows) for name, rows in layers])
    return slots


def read_tables(
    stored: StoredPart,
    transformer: JointTransformer,
    times: Sequence[tuple[float, float]],
    longest: int,
    device: torch.device,
) -> None:
    """Complete a filled transformer by what its passes and sizes make constant.

    Args:
        stored: where it came from.
        transformer: lacks its positions and the times of its modulation.
        times: pairs of current and target time, a pass each.
        longest: patches along the side of the largest picture.
        device: where to.

    Raises:
        CheckpointError: a file is damaged.
    """
    config = transformer.config
    read = dict(stored.read(table_shapes(config), device))
    size = config.pos_embed_max_size
    kept = longest + (size - longest) % 2  # the middle of what is kept is the middle of all
    grid, start = read.pop(_POSITIONS).view(size, size, -1), (size - kept) // 2
    middle = grid[start : start + kept, start : start + kept]
    transformer.positions = middle.to(transformer.proj.weight.dtype, copy=True)
    transformer.modulation.set_times(*fold_times(read, config, times, device))


def read_times(
    stored: StoredPart, config: JointConfig, times: Sequence[tuple[float, float]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read the time embedders alone, and embed the times of all passes; see :func:`fold_times`."""
    names = [name for name in table_shapes(config) if name != _POSITIONS]
    return fold_times(dict(stored.read(names, device)), config, times, device)


def fold_times(
    weights: dict[str, Tensor],
    config: JointConfig,
    times: Sequence[tuple[float, float]],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Embed the times of all passes; see :meth:`PromptModulation.set_times`."""
    if not config.second_time_embedder:
        times = [(single_time(*pair), 0.0) for pair in times]
    t, target = torch.tensor(times, dtype=torch.float64, device=device).unbind(1)
    rows, gaps = _embed(weights, _FIRST, t), (t - target).float().unsqueeze(1)
    if config.second_time_embedder:
        rows = rows + gaps * _embed(weights, _SECOND, target)
    return rows, gaps


def _embed(weights: dict[str, Tensor], embedder: str, time: Tensor) -> Tensor:
    """Embed times ``[P]`` as ``[P, dim]`` fp32."""
    stem = f"{embedder}.timestep_embedder.linear_"
    # On the CPU a tensor is a view of the file, and may be unaligned.
    first, second = (
        [weights[f"{stem}{i}.{kind}"].to(torch.float32, copy=True) for kind in ("weight", "bias")]
        for i in (1, 2)
    )
    hidden = functional.silu(functional.linear(sinusoid(time * TIME_SCALE), *first))
    return functional.linear(hidden, *second)


def _embedders(config: JointConfig) -> tuple[str, ...]:
    return (_FIRST, _SECOND) if config.second_time_embedder else (_FIRST,)


def _rename(name: str) -> str:
    for ours, theirs in _RENAMED.items():
        if name.startswith(ours) or (ours.startswith(".") and ours in name):
            return name.replace(ours, theirs)
    return name
