"""Rotary tables of a caption and an image that share one sequence.

Every token has three coordinates. Caption token i sits at (1 + i, 0, 0), the image patch of row r and
column c at (L + 1, r, c) for a caption of L tokens, and image padding at (0, 0, 0).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from twinshot_engine.tables import keep
from twinshot_engine.transformer.config import TOKEN_MULTIPLE, SingleStreamConfig


class Layout(NamedTuple):
    """Token counts of one sequence: caption tokens (padded), patch rows, patch columns."""

    caption: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Image tokens without padding."""
        return self.rows * self.columns

    @property
    def padding(self) -> int:
        """Pad tokens after the patches."""
        return -self.patches % TOKEN_MULTIPLE


class RotaryTable(NamedTuple):
    """Cosines and sines, each ``[N, head_dim / 2]`` fp32."""

    cos: Tensor
    sin: Tensor


class SequenceRotary(NamedTuple):
    """Tables of the image tokens alone, and of image and caption in sequence order."""

    image: RotaryTable
    joint: RotaryTable


class RotaryPositions:
    """Builds rotary tables once for each layout and device and keeps them.

    They are kept outside of the module's buffers, which ``Module.to(bfloat16)`` would round.
    """

    def __init__(self, config: SingleStreamConfig) -> None:
        self.config = config
        self._captions: dict[tuple[int, torch.device], RotaryTable] = {}
        self._sequences: dict[tuple[Layout, torch.device], SequenceRotary] = {}

    def caption(self, tokens: int, device: torch.device) -> RotaryTable:
        """Return the table of a caption of ``tokens`` padded tokens.

        Raises:
            ValueError: there are more than the config has positions for, or no multiple of 32.
        """
        self._check_caption(tokens)
        return keep(self._captions, (tokens, device), lambda: self._rotate(_caption_ids(tokens, device)))

    def tables(self, layout: Layout, device: torch.device) -> SequenceRotary:
        """Return the tables of ``layout`` on ``device``.

        Raises:
            ValueError: a coordinate exceeds the config's ``axes_lens``.
        """
        self._check_image(layout)
        return keep(self._sequences, (layout, device), lambda: self._build(layout, device))

    def _build(self, layout: Layout, device: torch.device) -> SequenceRotary:
        image, caption = self._rotate(_image_ids(layout, device)), self.caption(layout.caption, device)
        joint = RotaryTable(torch.cat((image.cos, caption.cos)), torch.cat((image.sin, caption.sin)))
        return SequenceRotary(image, joint)

    def _check_caption(self, tokens: int) -> None:
        if tokens % TOKEN_MULTIPLE or not 0 < tokens <= self.config.max_caption_tokens:
            raise ValueError(
                f"a caption of {tokens} tokens is not supported: multiples of {TOKEN_MULTIPLE} "
                f"up to {self.config.max_caption_tokens} are"
            )

    def _check_image(self, layout: Layout) -> None:
        _, most_rows, most_columns = self.config.axes_lens
        if layout.rows > most_rows or layout.columns > most_columns:
            raise ValueError(
                f"an image of {layout.rows}x{layout.columns} patches is not supported: "
                f"{most_rows}x{most_columns} is the most"
            )

    def _rotate(self, ids: Tensor) -> RotaryTable:
        angles = torch.cat(
            [self._angles(ids[:, axis], size) for axis, size in enumerate(self.config.axes_dims)], -1
        )
        return RotaryTable(angles.cos(), angles.sin())

    def _angles(self, positions: Tensor, size: int) -> Tensor:
        exponents = torch.arange(0, size, 2, dtype=torch.float64, device=positions.device) / size
        return torch.outer(positions, self.config.rope_theta**-exponents).float()


def _caption_ids(tokens: int, device: torch.device) -> Tensor:
    ids = torch.zeros(tokens, 3, dtype=torch.float64, device=device)
    ids[:, 0] = torch.arange(1, tokens + 1, device=device)
    return ids


def _image_ids(layout: Layout, device: torch.device) -> Tensor:
    ids = torch.zeros(layout.patches + layout.padding, 3, dtype=torch.float64, device=device)
    ids[: layout.patches, 0] = layout.caption + 1
    ids[: layout.patches, 1] = torch.arange(layout.rows, device=device).repeat_interleave(layout.columns)
    ids[: layout.patches, 2] = torch.arange(layout.columns, device=device).repeat(layout.rows)
    return ids
