"""Shape of a KL autoencoder, read from diffusers' ``AutoencoderKL`` config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinshot_engine.config_types import read_fields

_DOWN_BLOCK, _UP_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"


@dataclass(frozen=True)
class KLConfig:
    """Sizes and constants of an :class:`AutoencoderKL`; names are those of diffusers' ``config.json``.

    Raises:
        ValueError: a value is not supported; the message names it and what is accepted.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    act_fn: str = "silu"
    mid_block_add_attention: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    def __post_init__(self) -> None:
        if self.act_fn not in ("silu", "swish"):
            raise ValueError(f"act_fn {self.act_fn!r} is not supported: 'silu' is")
        if self.layers_per_block < 1:
            raise ValueError(f"layers_per_block {self.layers_per_block} is not at least 1")
        if uneven := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            raise ValueError(
                f"block_out_channels {uneven} must be multiples of norm_num_groups {self.norm_num_groups}"
            )

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "KLConfig":
        """Read a ``config.json``; absent keys take diffusers' defaults where those differ from ours.

        Raises:
            ValueError: a value is not supported.
        """
        _check_blocks(config.get("down_block_types") or [], _DOWN_BLOCK)
        _check_blocks(config.get("up_block_types") or [], _UP_BLOCK)
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise ValueError(
                "latents_mean and latents_std are not supported: scaling_factor and shift_factor are"
            )
        defaults = _DIFFUSERS_DEFAULTS | {key: value for key, value in config.items() if value is not None}
        given = {key: defaults[key] for key in cls.__dataclass_fields__ if key in defaults}
        return read_fields(cls, given)


_DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
}


def _check_blocks(types: list[str], supported: str) -> None:
    if unknown := sorted(set(types) - {supported}):
        raise ValueError(f"blocks of type {unknown} are not supported: {supported!r} is")
