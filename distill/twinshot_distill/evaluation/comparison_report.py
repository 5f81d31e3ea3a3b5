"""A comparison of training methods as files: rows, tables, curves, and the same pictures of each."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from twinshot_distill.charts import line_chart
from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluation.comparison import FLOW_GUIDANCE, Row, Scoring, score, sheet_trials
from twinshot_distill.evaluation.statistics import wilson
from twinshot_distill.miniature.methods import COST
from twinshot_distill.world.captions import plain_caption

MEASURES = {"score": "score", "fidelity": "fidelity_median"}
"""What curves show, and the column of a row that holds it."""

_TILE, _MARGIN, _TEXT = 128, 100, 44
_NOTE = (
    "Scores are the frozen verifier's on GenEval's six tasks in the built-in world, never GenEval scores: "
    "the share of pictures that pass, the share at the strict threshold, and the median of how closely "
    "objects are drawn. Prompts and seeds are the same for all. A pass is one run of the transformer. "
    f"Flow matching takes Euler steps with guidance {FLOW_GUIDANCE:g}, two passes each; the others have "
    "guidance of that strength in their targets and are served without. DMD2 is trained for one step alone."
)


def write_comparison(folder: Path, methods: Sequence[str], plan: Scoring) -> list[dict[str, Any]]:
    """Score what is not scored yet, and write rows, tables, curves and pictures of all methods.

    Args:
        folder: holds a folder a method, each with its `checkpoint` and what training it took.
        methods: names of those folders.
        plan: what is scored.

    Returns the rows.

    Raises:
        TrainingError: the files cannot be written.
    """
    try:
        costs = [json.loads((folder / method / COST).read_text()) for method in methods]
        scores = [row for method in methods for row in score(method, folder / method, plan)]
        rows = [*costs, *scores]
        (folder / "comparison.json").write_text(json.dumps(rows, indent=1) + "\n")
        (folder / "comparison.md").write_text(as_markdown(rows))
        for split, measure in product(plan.splits, MEASURES):
            (folder / f"comparison-{split}-{measure}.svg").write_text(curve(rows, split, measure))
        strips = {method: Image.open(folder / method / "one_step.png") for method in methods}
        captions = [plain_caption(trial.scene) for trial in sheet_trials()]
        picture_sheet(strips, captions).save(folder / "comparison.webp", quality=82, method=6)
    except OSError as error:
        raise TrainingError(f"The comparison cannot be written to '{folder}': {error}.") from error
    return rows


def curve(rows: Sequence[Row], split: str, measure: str) -> str:
    """The mean of one of `MEASURES` over steps as SVG, a line a method."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in _means(rows, split):
        series.setdefault(row["method"], []).append((row["steps"], row[MEASURES[measure]]))
    ordered = {method: sorted(points) for method, points in series.items()}
    return line_chart(f"{measure.capitalize()}, {split}", ordered, x_label="steps", logarithmic=True)


def as_markdown(rows: Sequence[Row]) -> str:
    """What training took, and mean scores by method, step count and combinations."""
    costs = [row for row in rows if row["benchmark"] == "training-cost"]
    splits = list(dict.fromkeys(row["combinations"] for row in rows if "combinations" in row))
    parts = [_table(_COST_HEAD, [_cost_cells(row) for row in costs])]
    for split in splits:
        cells = [_score_cells(row) for row in _means(rows, split)]
        parts.append(f"{split.capitalize()} combinations:\n\n{_table(_SCORE_HEAD, cells)}")
    return "\n".join([*parts, _NOTE, *_circumstances(costs)]) + "\n"


def picture_sheet(strips: Mapping[str, Image.Image], captions: Sequence[str]) -> Image.Image:
    """Strips of square pictures, a row a method with its name before it, the captions above."""
    sheet = Image.new("RGB", (_MARGIN + len(captions) * _TILE, _TEXT + len(strips) * _TILE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, words in enumerate(captions):
        lines = textwrap.wrap(words.removeprefix("a photo of "), 21)[:3]
        place = (_MARGIN + column * _TILE + 2, 2)
        pen.text(place, "\n".join(lines), fill="black", font=font, spacing=1)
    for row, (method, strip) in enumerate(strips.items()):
        top = _TEXT + row * _TILE
        pen.text((4, top + _TILE // 2), method, fill="black", font=font)
        size = (len(captions) * _TILE, _TILE)
        sheet.paste(strip.resize(size, Image.Resampling.LANCZOS), (_MARGIN, top))
    return sheet


_COST_HEAD = (
    *("method", "seconds", "steps", "ms a step", "images/s", "passes a row", "trained, M", "held, M"),
    *("peak, MiB", "networks"),
)
_SCORE_HEAD = ("method", "steps", "passes", "score", "95 %", "strict", "fidelity", "n")


def _means(rows: Sequence[Row], split: str) -> list[Row]:
    return [row for row in rows if row.get("task") == "mean" and row["combinations"] == split]


def _cost_cells(row: Row) -> list[str]:
    peak = "not measured" if row["peak_mib"] is None else str(row["peak_mib"])
    sizes = [f"{row[name] / 1e6:.1f}" for name in ("trained_parameters", "held_parameters")]
    speed = [f"{row['ms_a_step']:.1f}", f"{row['images_per_s']:.0f}", f"{row['passes_a_row']:.2f}"]
    length = [f"{row['seconds']:.0f}", str(row["training_steps"])]
    return [row["method"], *length, *speed, *sizes, peak, row["networks"]]


def _score_cells(row: Row) -> list[str]:
    score, *others = (f"{row[name]:.3f}" for name in ("score", "strict_score", "fidelity_median"))
    interval = "-".join(f"{end:.3f}" for end in wilson(row["score"], row["n"]))
    return [row["method"], str(row["steps"]), str(row["passes"]), score, interval, *others, str(row["n"])]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _circumstances(costs: Sequence[Row]) -> list[str]:
    """How all of it was trained, a line for each way of it."""
    told = (
        f"{row['batch']} rows a step, seed {row['seed']}, GPU {row['gpu']}, "
        f"torch {row['versions']['torch']}, {row['date']}."
        for row in costs
    )
    return list(dict.fromkeys(told))
