"""Contact sheets of a checkpoint: held-out prompts, the same seeds, at several step counts.

python -m twinshot_distill.contact_sheet CHECKPOINT --out docs/pictures
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from twinshot_distill.evaluate import draw
from twinshot_distill.evaluation.trials import trials
from twinshot_distill.world.captions import plain_caption
from twinshot_distill.world.scenes import TASKS
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine

_COLUMNS = 8
_GAP = 4
_TEXT = 34
_LETTER = 6  # pixels, at most on average
_QUALITY = 32  # of WebP: a sheet is kept in the repository


def compose_sheet(pictures: NDArray[np.uint8], captions: list[str]) -> Image.Image:
    """Pictures [N, H, W, 3] at their own size with their captions underneath, eight a row."""
    rows = -(-len(pictures) // _COLUMNS)
    wide, high = pictures.shape[2] + _GAP, pictures.shape[1] + _TEXT + _GAP
    sheet = Image.new("RGB", (_COLUMNS * wide, rows * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (picture, words) in enumerate(zip(pictures, captions, strict=True)):
        x, y = index % _COLUMNS * wide, index // _COLUMNS * high
        sheet.paste(Image.fromarray(picture), (x, y))
        lines = textwrap.wrap(words.removeprefix("a photo of "), wide // _LETTER)[:2]
        pen.text((x + 1, y + picture.shape[0] + 1), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet


def main(
    checkpoint: Annotated[str, typer.Argument(help="Folder, Hub id, or 'builtin'.")] = "builtin",
    steps: Annotated[list[int] | None, typer.Option(help="Step counts; repeat. Default 1 and 4.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for sheet_<steps>.webp.")] = Path("out"),
    count: Annotated[int, typer.Option(help="Pictures a sheet.")] = 48,
) -> None:
    """Draw contact sheets of held-out prompts."""
    counts = steps or [1, 4]
    engine = Engine.load(EngineConfig(checkpoint, max_batch=12, steps=tuple(counts)))
    engine.warm()
    per_task = [
        trials(task, "unseen", -(-count // len(TASKS)), engine.info.vocabulary or None) for task in TASKS
    ]
    asked = [trial for group in zip(*per_task, strict=True) for trial in group][:count]
    captions = [plain_caption(trial.scene) for trial in asked]
    out.mkdir(parents=True, exist_ok=True)
    for number in counts:
        pictures = np.concatenate(list(draw(engine, asked, number)))
        compose_sheet(pictures, captions).save(out / f"sheet_{number}.webp", quality=_QUALITY, method=6)


if __name__ == "__main__":
    typer.run(main)
