"""Shape of a joint transformer, read from diffusers' ``SD3Transformer2DModel`` config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinshot_engine.config_types import read_fields


@dataclass(frozen=True)
class JointConfig:
    """Sizes and constants of a :class:`~twinshot_engine.transformer.joint_transformer.JointTransformer`.

    Field names are those of diffusers' ``config.json``; ``second_time_embedder`` is ours and says whether
    TwinFlow's ``time_text_embed_2`` exists.

    Raises:
        ValueError: a value is not supported; the message names it and what is accepted.
    """

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None
    second_time_embedder: bool = False

    def __post_init__(self) -> None:
        if self.qk_norm != "rms_norm":
            raise ValueError(f"qk_norm {self.qk_norm!r} is not supported: 'rms_norm' is")
        if self.out_channels not in (None, self.in_channels):
            raise ValueError(f"out_channels {self.out_channels} must equal in_channels {self.in_channels}")
        if self.caption_projection_dim != self.dim:
            raise ValueError(
                f"caption_projection_dim {self.caption_projection_dim} must be "
                f"num_attention_heads * attention_head_dim = {self.dim}"
            )
        if self.attention_head_dim % 2:
            raise ValueError(f"attention_head_dim {self.attention_head_dim} must be even")
        if unknown := [index for index in self.dual_attention_layers if not 0 <= index < self.num_layers]:
            raise ValueError(f"dual_attention_layers {unknown} are not among {self.num_layers} layers")

    @property
    def dim(self) -> int:
        """Channels of both streams."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "JointConfig":
        """Read a ``config.json``; keys that start with an underscore are diffusers' notes.

        Raises:
            ValueError: a key is unknown or a value unsupported.
        """
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        return read_fields(cls, given)
