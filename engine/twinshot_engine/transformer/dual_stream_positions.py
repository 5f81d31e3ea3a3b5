"""Rotary tables of an image and the text behind it, in one sequence.

Every token has three coordinates. The patch of row r and column c sits at (0, r, c) counted from the middle
of the image; text token i at (m + i, m + i, m + i), where m is half of the longer side in patches. So the
image's positions do not depend on the text, and padding behind the text has positions that nobody looks at.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from twinshot_engine.tables import keep
from twinshot_engine.transformer.dual_stream_config import MOST_POSITIONS, DualStreamConfig
from twinshot_engine.transformer.positions import RotaryTable

_THETA = 10_000.0


class JointLayout(NamedTuple):
    """Token counts of one sequence: patch rows, patch columns, text tokens (padded)."""

    rows: int
    columns: int
    text: int

    @property
    def patches(self) -> int:
        """Image tokens; they come first."""
        return self.rows * self.columns


class JointPositions:
    """Builds the rotary table of a layout and device once and keeps it.

    Kept outside of the module's buffers, which ``Module.to(bfloat16)`` would round.
    """

    def __init__(self, config: DualStreamConfig) -> None:
        self.config = config
        self._tables: dict[tuple[JointLayout, torch.device], RotaryTable] = {}

    def table(self, layout: JointLayout, device: torch.device) -> RotaryTable:
        """Return the table of ``layout`` on ``device``, ``[patches + text, head_dim / 2]``.

        Raises:
            ValueError: a coordinate is beyond the 4096 positions of an axis.
        """
        last = max(layout.rows // 2, layout.columns // 2) + layout.text
        if max(last, layout.rows, layout.columns) > MOST_POSITIONS:
            raise ValueError(
                f"{layout.rows}x{layout.columns} patches with {layout.text} text tokens are not supported: "
                f"coordinates end at {MOST_POSITIONS}"
            )

        def build() -> RotaryTable:
            angles = self._angles(_coordinates(layout, device))
            return RotaryTable(angles.cos(), angles.sin())

        return keep(self._tables, (layout, device), build)

    def _angles(self, coordinates: Tensor) -> Tensor:
        """Turn coordinates ``[N, 3]`` into angles ``[N, head_dim / 2]``, fp32 as the model was trained."""
        parts = []
        for axis, size in enumerate(self.config.axes_dims_rope):
            steps = torch.arange(0, size, 2, dtype=torch.float32, device=coordinates.device) / size
            parts.append(torch.outer(coordinates[:, axis], 1.0 / torch.pow(_THETA, steps)))
        return torch.cat(parts, dim=-1)


def _coordinates(layout: JointLayout, device: torch.device) -> Tensor:
    rows, columns, text = layout
    row = torch.arange(rows, dtype=torch.float32, device=device) - (rows - rows // 2)
    column = torch.arange(columns, dtype=torch.float32, device=device) - (columns - columns // 2)
    grid = torch.zeros(rows, columns, 3, device=device)
    grid[..., 1], grid[..., 2] = row[:, None], column
    line = torch.arange(text, dtype=torch.float32, device=device) + max(rows // 2, columns // 2)
    return torch.cat((grid.flatten(0, 1), line[:, None].expand(text, 3)))
