"""Shape of Qwen-Image's autoencoder, read from diffusers' ``AutoencoderKLQwenImage`` config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinshot_engine.config_types import read_fields

# fmt: off
_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on
_TAPS = (3, 3, 3)

Shapes = dict[str, tuple[int, ...]]
"""Stored names and their shapes."""


@dataclass(frozen=True)
class QwenImageVAEConfig:
    """Sizes and constants of the decoder; names are those of diffusers' ``config.json``.

    Raises:
        ValueError: a value is not supported; the message names it and what is accepted.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    input_channels: int = 3
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    def __post_init__(self) -> None:
        for name in ("latents_mean", "latents_std"):
            if len(values := getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name} has {len(values)} values, not the {self.z_dim} of z_dim")
        if odd := [width for width in self.widths[:-1] if width % 2]:
            raise ValueError(f"widths {odd} are halved by upsamplers, so they must be even")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level of the decoder, the smallest image first."""
        return tuple(self.base_dim * factor for factor in reversed(self.dim_mult))

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along one side."""
        return int(2 ** (len(self.dim_mult) - 1))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> QwenImageVAEConfig:
        """Read a ``config.json``; what only concerns the encoder or time is left aside.

        Raises:
            ValueError: a value is not supported.
        """
        given = {key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None}
        return read_fields(cls, given)

    def stored_shapes(self) -> Shapes:
        """Names and shapes of the decoder's stored tensors that one image needs."""
        widths, shapes = self.widths, self._convolution("post_quant_conv", self.z_dim, self.z_dim, (1, 1, 1))
        shapes |= self._convolution("decoder.conv_in", self.z_dim, widths[0], _TAPS)
        for index in range(2):
            shapes |= self._resnet(f"decoder.mid_block.resnets.{index}", widths[0], widths[0])
        shapes |= self._attention("decoder.mid_block.attentions.0", widths[0])
        for level, width in enumerate(widths):
            entering = widths[level - 1] // 2 if level else width
            shapes |= self._up_block(
                f"decoder.up_blocks.{level}", entering, width, last=level + 1 == len(widths)
            )
        shapes |= {"decoder.norm_out.gamma": (widths[-1], 1, 1, 1)}
        return shapes | self._convolution("decoder.conv_out", widths[-1], self.input_channels, _TAPS)

    def _up_block(self, name: str, entering: int, width: int, *, last: bool) -> Shapes:
        shapes: Shapes = {}
        for index in range(self.num_res_blocks + 1):
            shapes |= self._resnet(f"{name}.resnets.{index}", width if index else entering, width)
        if last:
            return shapes
        return shapes | self._convolution(f"{name}.upsamplers.0.resample.1", width, width // 2, (3, 3))

    def _resnet(self, name: str, entering: int, width: int) -> Shapes:
        shapes: Shapes = {f"{name}.norm1.gamma": (entering, 1, 1, 1), f"{name}.norm2.gamma": (width, 1, 1, 1)}
        shapes |= self._convolution(f"{name}.conv1", entering, width, _TAPS)
        shapes |= self._convolution(f"{name}.conv2", width, width, _TAPS)
        if entering != width:
            shapes |= self._convolution(f"{name}.conv_shortcut", entering, width, (1, 1, 1))
        return shapes

    def _attention(self, name: str, width: int) -> Shapes:
        shapes: Shapes = {f"{name}.norm.gamma": (width, 1, 1)}
        shapes |= self._convolution(f"{name}.to_qkv", width, 3 * width, (1, 1))
        return shapes | self._convolution(f"{name}.proj", width, width, (1, 1))

    @staticmethod
    def _convolution(name: str, inputs: int, outputs: int, taps: tuple[int, ...]) -> Shapes:
        return {f"{name}.weight": (outputs, inputs, *taps), f"{name}.bias": (outputs,)}
