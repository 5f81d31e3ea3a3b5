"""Shape of SANA's transformer, read from diffusers' ``SanaTransformer2DModel`` config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinshot_engine.config_types import read_fields


@dataclass(frozen=True)
class LinearAttentionConfig:
    """Sizes and constants; names are those of diffusers' ``config.json``.

    Attributes:
        second_time_embedder: whether TwinFlow's ``time_embed_2`` is there; the weights tell, not the config.

    Raises:
        ValueError: a value is not supported; the message names it and what is accepted.
    """

    in_channels: int = 32
    out_channels: int = 32
    num_attention_heads: int = 70
    attention_head_dim: int = 32
    num_layers: int = 20
    num_cross_attention_heads: int = 20
    cross_attention_head_dim: int = 112
    cross_attention_dim: int = 2240
    caption_channels: int = 2304
    mlp_ratio: float = 2.5
    attention_bias: bool = False
    patch_size: int = 1
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    guidance_embeds: bool = False
    guidance_embeds_scale: float = 0.1
    qk_norm: str | None = None
    timestep_scale: float = 1.0
    second_time_embedder: bool = False

    def __post_init__(self) -> None:
        for name, supported in _SUPPORTED.items():
            if getattr(self, name) not in supported:
                accepted = " or ".join(map(repr, supported))
                raise ValueError(f"{name} {getattr(self, name)!r} is not supported: {accepted} is")
        for name in ("cross_attention_dim", "cross_attention_width"):
            if getattr(self, name) != self.dim:
                raise ValueError(f"{name} {getattr(self, name)} is not the {self.dim} channels of the stream")
        if self.out_channels != self.in_channels:
            raise ValueError(f"out_channels {self.out_channels} are not the in_channels {self.in_channels}")

    @property
    def dim(self) -> int:
        """Channels of the stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def cross_attention_width(self) -> int:
        """Channels inside cross attention, which must be the stream's here as in every published model."""
        return self.num_cross_attention_heads * self.cross_attention_head_dim

    @property
    def hidden(self) -> int:
        """Channels of the feed-forward layer behind its gate."""
        return int(self.mlp_ratio * self.dim)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LinearAttentionConfig:
        """Read a ``config.json``; other keys are ignored, absent ones take diffusers' defaults.

        Raises:
            ValueError: a value is not supported.
        """
        given = {key: config[key] for key in cls.__dataclass_fields__ if key in config}
        if given.get("out_channels") is None:
            given["out_channels"] = given.get("in_channels", cls.in_channels)
        return read_fields(cls, given)


_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "patch_size": (1,),
    "norm_elementwise_affine": (False,),
    "interpolation_scale": (None,),
    "qk_norm": (None, "rms_norm_across_heads"),
}
