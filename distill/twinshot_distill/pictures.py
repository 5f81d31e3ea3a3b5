"""Pictures as one file: a sheet of tiles."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from twinshot_kernels import quantize_pixels


@torch.no_grad()
def save_sheet(path: Path, pictures: Tensor, *, columns: int = 8) -> None:
    """Save pictures [N, 3, H, W] in -1..1, row by row, as one file."""
    tiles = quantize_pixels(pictures).cpu().numpy()
    height, width = tiles.shape[1:3]
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * width, rows * height))
    for index, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (index % columns * width, index // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=90)
