"""The report of an evaluation as one HTML file with its pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinshot_distill.charts import line_chart
from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluation.builtin import CEILING, Findings
from twinshot_distill.live_page import STYLE

_NOTE = (
    "GenEval's six tasks in what the checkpoint was taught of the built-in world, judged by the frozen "
    "verifier on prompts and seeds that are the same every time. This is not a GenEval score. The auditor is "
    "a second, independent judge; disagreement is the share of pictures on which the two differ. Intervals "
    "are Wilson's at 95 %; corrected scores take the verifier's measured errors out; shuffled is the control "
    "from below, each picture judged by another's prompt; ceiling the one from above, true scenes through "
    "the autoencoder (100 a task at most); fidelity how closely the drawings match, 1 for a copy. Diversity "
    "is the mean root-mean-square difference of pictures that differ in their seed alone, read at 64 pixels, "
    "with the 95 % interval of Student's t over prompts."
)
_COLUMNS = (
    *("steps", "combinations", "prompts", "task", "score", "interval", "corrected", "strict", "shuffled"),
    *("fidelity", "below .5", "auditor", "disagreement", "n"),
)


def write_report(folder: Path, findings: Findings, facts: Mapping[str, Any]) -> Path:
    """Write `report.html`, `scores.json`, `curve.svg` and the pictures.

    Args:
        folder: for all of them.
        findings: what was measured.
        facts: what a reader must know to measure it again: name and path of the checkpoint, precision,
            count, seeds, device, versions, commit, date.

    Returns the page's path.

    Raises:
        TrainingError: the files cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row | dict(facts) for row in findings.rows]
        (folder / "scores.json").write_text(json.dumps(rows, indent=1) + "\n")
        curve = score_curve(findings.rows)
        (folder / "curve.svg").write_text(curve)
        for steps, pictures in findings.pictures.items():
            _save_pictures(folder / "pictures" / str(steps), pictures)
        page = folder / "report.html"
        page.write_text(_page(findings, facts, curve))
    except OSError as error:
        raise TrainingError(f"The report cannot be written to '{folder}': {error}.") from error
    return page


def score_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean score over steps, one line for each kind of combinations and language, as SVG."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["task"] == "mean" and isinstance(row["steps"], int):
            name = (
                row["combinations"]
                if row["language"] == "en"
                else f"{row['combinations']}, {row['language']}"
            )
            series.setdefault(name, []).append((row["steps"], row["score"]))
            series.setdefault(f"{name}, strict", []).append((row["steps"], row["strict_score"]))
    ordered = {name: sorted(points) for name, points in series.items()}
    return line_chart("Score by steps", ordered, x_label="steps", logarithmic=True, marked=True)


def _save_pictures(folder: Path, pictures: NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index:03d}.webp", quality=90)


def _page(findings: Findings, facts: Mapping[str, Any], curve: str) -> str:
    told = "".join(_fact(name, value) for name, value in facts.items())
    diverse = ", ".join(
        f"{as_steps(steps)} {mean:.4f} ({low:.4f} to {high:.4f})"
        for steps, (mean, low, high) in findings.diversity.items()
    )
    sheets = "".join(_sheet(steps, findings.captions) for steps in findings.pictures)
    sheet_style = (
        ".sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:.6rem}"
        "figcaption{font-size:.75rem}tr.mean{font-weight:600}.chart{max-width:640px}"
        ".wide{overflow-x:auto}table{font-size:.9rem}td,th{padding:.15rem .45rem;white-space:nowrap}"
        "dl{display:grid;grid-template-columns:max-content 1fr;gap:0 1rem}"
        "dd{margin:0;overflow-wrap:anywhere}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{STYLE}{sheet_style}</style>"
        f"<h1>Evaluation of {escape(str(facts.get('name', '')))}</h1>"
        f'<dl>{told}</dl><p>{escape(_NOTE)}</p><div class="chart">{curve}</div>'
        f"<p>Diversity: {escape(diverse)}.</p>{_alone(findings.rows)}{_table(findings.rows)}{sheets}</html>\n"
    )


def _alone(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say so if there was no second judge."""
    judged = any(row["auditor_score"] is not None for row in rows)
    return "" if judged else "<p>The auditor's weights were not there: the verifier judged alone.</p>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join(_table_row(row) for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(row: Mapping[str, Any]) -> str:
    cells = (
        *(row["steps"], row["combinations"], row["language"] or "-", row["task"], f"{row['score']:.3f}"),
        *(f"{row['low']:.3f}-{row['high']:.3f}", f"{row['corrected_score']:.3f}"),
        *(f"{row['strict_score']:.3f}", f"{row['shuffled_score']:.3f}", f"{row['fidelity_median']:.3f}"),
        *(f"{row['low_fidelity_share']:.3f}", _shown(row["auditor_score"])),
        *(_shown(row["disagreement"]), row["n"]),
    )
    kind = ' class="mean"' if row["task"] == "mean" else ""
    return f"<tr{kind}>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>"


def as_steps(steps: int | str) -> str:
    """A row's step count in words; the ceiling's row has none."""
    return str(steps) if steps == CEILING else f"{steps} step" if steps == 1 else f"{steps} steps"


def _fact(name: str, value: Any) -> str:
    told = "-" if value is None else str(value)
    return f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(told)}</dd>"


def _shown(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def _sheet(steps: int, captions: Sequence[str]) -> str:
    figures = "".join(
        f'<figure><img src="pictures/{steps}/{index:03d}.webp" alt="{escape(words)}" loading="lazy">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
        for index, words in enumerate(captions)
    )
    return f'<h2>{as_steps(steps)}</h2><div class="sheet">{figures}</div>'
