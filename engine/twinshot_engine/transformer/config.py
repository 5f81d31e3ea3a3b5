"""Shape of a single-stream transformer, read from diffusers' ``ZImageTransformer2DModel`` config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinshot_engine.config_types import read_fields

TIME_CHANNELS = 256
"""Most channels a time embedding has; narrower models use their own width."""

CHANNEL_MULTIPLE = 16
"""The folded form pads inner widths to a multiple of this, which tensor cores need."""

TOKEN_MULTIPLE = 32
"""Caption and image tokens are each padded to a multiple of this."""


@dataclass(frozen=True)
class SingleStreamConfig:
    """Sizes and constants of a :class:`SingleStreamTransformer`.

    Field names are those of diffusers' ``config.json``; ``second_time_embedder`` is ours and says
    whether TwinFlow's ``t_embedder_2`` exists.

    Raises:
        ValueError: a value is not supported; the message names it and what is accepted.
    """

    all_patch_size: tuple[int, ...] = (2,)
    all_f_patch_size: tuple[int, ...] = (1,)
    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)
    second_time_embedder: bool = True

    def __post_init__(self) -> None:
        if len(self.all_patch_size) != 1 or self.all_f_patch_size != (1,):
            raise ValueError(
                f"all_patch_size {self.all_patch_size} with all_f_patch_size {self.all_f_patch_size} is not "
                "supported: one spatial patch size and all_f_patch_size (1,) are"
            )
        if self.n_kv_heads != self.n_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} must equal n_heads {self.n_heads}")
        if self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of n_heads {self.n_heads}")
        self._check_axes()

    def _check_axes(self) -> None:
        if len(self.axes_dims) != 3 or len(self.axes_lens) != 3:
            raise ValueError(
                f"axes_dims {self.axes_dims} and axes_lens {self.axes_lens} must have 3 values each"
            )
        if any(d % 2 for d in self.axes_dims) or sum(self.axes_dims) != self.head_dim:
            raise ValueError(
                f"axes_dims {self.axes_dims} must be even and add up to the head size {self.head_dim}"
            )

    @property
    def patch_size(self) -> int:
        """Side of a square patch, in latent pixels."""
        return self.all_patch_size[0]

    @property
    def patch_name(self) -> str:
        """Key of the embedder and final layer in diffusers' module dictionaries, such as ``2-1``."""
        return f"{self.patch_size}-1"

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.n_heads

    @property
    def ffn_channels(self) -> int:
        """Inner width of a feed-forward layer."""
        return int(self.dim / 3 * 8)

    @property
    def time_channels(self) -> int:
        """Channels of the time embedding."""
        return min(self.dim, TIME_CHANNELS)

    @property
    def max_caption_tokens(self) -> int:
        """Longest padded caption for which the image still has a position on the first axis."""
        return (self.axes_lens[0] - 2) // TOKEN_MULTIPLE * TOKEN_MULTIPLE

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SingleStreamConfig":
        """Read a ``config.json``; keys that start with an underscore are diffusers' notes.

        Raises:
            ValueError: a key is unknown or a value unsupported.
        """
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        if given.pop("siglip_feat_dim", None) is not None:
            raise ValueError(f"siglip_feat_dim {config['siglip_feat_dim']} is not supported: only null is")
        return read_fields(cls, given)
