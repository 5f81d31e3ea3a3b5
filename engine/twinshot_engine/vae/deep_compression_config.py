"""Shape of a deep-compression autoencoder's decoder, read from diffusers' ``AutoencoderDC`` config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinshot_engine.config_types import read_fields

BLOCKS = ("ResBlock", "EfficientViTBlock")
LAST_ACTIVATIONS = ("relu", "silu")


@dataclass(frozen=True)
class DeepCompressionConfig:
    """Sizes and constants of a decoder; names are those of ``config.json`` without ``decoder_``.

    Levels are listed from the image's resolution to the latents'. A lighter variant has no layers at the
    first level: its last convolution doubles the size, and SiLU may stand before it in ReLU's place.

    Raises:
        ValueError: a value is not supported; the message names it and what is accepted.
    """

    in_channels: int
    latent_channels: int
    attention_head_dim: int
    block_out_channels: tuple[int, ...]
    block_types: tuple[str, ...]
    layers_per_block: tuple[int, ...]
    qkv_multiscales: tuple[tuple[int, ...], ...]
    interpolate: bool
    in_shortcut: bool
    conv_act_fn: str
    scaling_factor: float

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name in ("block_types", "layers_per_block", "qkv_multiscales"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} has {len(getattr(self, name))} levels, not {levels}")
        if unknown := sorted(set(self.block_types) - set(BLOCKS)):
            raise ValueError(f"blocks of type {unknown} are not supported: {' and '.join(BLOCKS)} are")
        if min(self.layers_per_block[1:]) < 1:
            raise ValueError(f"layers_per_block {self.layers_per_block} may be 0 at the first level alone")
        if any(len(scales) > 1 for scales in self.qkv_multiscales):
            raise ValueError(f"qkv_multiscales {self.qkv_multiscales} has a level of more than one scale")
        if self.conv_act_fn not in LAST_ACTIVATIONS:
            raise ValueError(
                f"conv_act_fn {self.conv_act_fn!r} is not supported: {' and '.join(LAST_ACTIVATIONS)} are"
            )
        if self.conv_act_fn != "relu" and self.layers_per_block[0] > 0:
            raise ValueError(
                f"conv_act_fn {self.conv_act_fn!r} is only supported where layers_per_block begins with 0, "
                f"and it is {self.layers_per_block}: elsewhere 'relu' is"
            )

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DeepCompressionConfig:
        """Read a ``config.json``; absent keys take diffusers' defaults.

        Raises:
            ValueError: a value is not supported.
        """
        values = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
        widths = values["decoder_block_out_channels"]
        for key, supported in (("norm_types", "rms_norm"), ("act_fns", "silu")):
            given = values[f"decoder_{key}"]
            if set(given if isinstance(given, list) else [given]) != {supported}:
                raise ValueError(f"decoder_{key} {given!r} is not supported: {supported!r} is")
        kinds = values["decoder_block_types"]
        if isinstance(kinds, str) and isinstance(widths, list | tuple):
            kinds = [kinds] * len(widths)
        named = {key.removeprefix("decoder_"): value for key, value in values.items()}
        named |= {"block_types": kinds, "interpolate": _interpolates(values["upsample_block_type"])}
        return read_fields(cls, {name: named[name] for name in cls.__dataclass_fields__})


def _interpolates(kind: str) -> bool:
    if kind not in ("interpolate", "pixel_shuffle"):
        raise ValueError(
            f"upsample_block_type {kind!r} is not supported: 'interpolate' and 'pixel_shuffle' are"
        )
    return kind == "interpolate"


_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "decoder_block_types": "ResBlock",
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "pixel_shuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
}
