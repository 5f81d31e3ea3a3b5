"""Shape of a dual-stream transformer, read from diffusers' ``QwenImageTransformer2DModel`` config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinshot_engine.config_types import read_fields

TIME_FREQUENCIES = 256
"""Channels of the sinusoid of a time."""

NORM_EPS = 1e-6
"""Of every norm."""

MOST_POSITIONS = 4096
"""Positions along one axis in either direction."""

_UNSUPPORTED = {
    "guidance_embeds": False,
    "zero_cond_t": False,
    "use_additional_t_cond": False,
    "use_layer3d_rope": False,
}


@dataclass(frozen=True)
class DualStreamConfig:
    """Sizes and constants of a :class:`~twinshot_engine.transformer.dual_stream.DualStreamTransformer`.

    Field names are those of diffusers' ``config.json``; ``second_time_embedder`` is ours and says whether
    TwinFlow's ``time_text_embed_2`` exists.

    Raises:
        ValueError: a value is not supported; the message names it and what is accepted.
    """

    patch_size: int = 2
    in_channels: int = 64
    out_channels: int = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    second_time_embedder: bool = True

    def __post_init__(self) -> None:
        axes = self.axes_dims_rope
        if len(axes) != 3 or any(d % 2 for d in axes) or sum(axes) != self.attention_head_dim:
            raise ValueError(
                f"axes_dims_rope {axes} must be 3 even values that add up to attention_head_dim "
                f"{self.attention_head_dim}"
            )
        if self.in_channels != self.out_channels * self.patch_size**2:
            raise ValueError(
                f"in_channels {self.in_channels} must be out_channels {self.out_channels} times the "
                f"{self.patch_size**2} latent pixels of a patch"
            )
        if self.num_layers < 1:
            raise ValueError(f"num_layers {self.num_layers} is not at least 1")

    @property
    def dim(self) -> int:
        """Channels of both streams."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def ffn_channels(self) -> int:
        """Inner width of a feed-forward layer."""
        return 4 * self.dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DualStreamConfig:
        """Read a ``config.json``; keys that start with an underscore are diffusers' notes.

        Raises:
            ValueError: a key is unknown or a value unsupported.
        """
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        # What older versions of diffusers wrote and never read.
        given.pop("pooled_projection_dim", None)
        for key, supported in _UNSUPPORTED.items():
            if (value := given.pop(key, supported)) != supported:
                raise ValueError(f"{key} {value!r} is not supported: {supported!r} is")
        return read_fields(cls, given)
