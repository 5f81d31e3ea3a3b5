"""The measurements in words: into `verifier.json`, and as tables into `README.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from twinshot_distill.verifier.augment import LEVELS
from twinshot_distill.verifier.freeze import read_card, write_card
from twinshot_distill.verifier.measure import Rate
from twinshot_distill.world.scenes import TASKS

_INTRO = """# The verifier

Says whether a generated picture shows what its caption asked for, by GenEval's six tasks, with a
detector of the built-in world's {classes} objects. Written, trained and frozen before the shipped generator,
with its own composer, layouts, shadows, backgrounds and seeds; the generator's training never reads it. Its
scores are "GenEval-style, built-in domain" and not GenEval scores.

Detector: {parameters:,} parameters, {input} px, weights in eight bits, sha256 `{sha256}`, frozen {date}.
Threshold {threshold} (calibrated on a seed of its own); strict 0.5. To train one anew:
`python -m twinshot_distill.verifier.train --out FOLDER`; to measure this one again: `--remeasure`.

All figures are from pictures composed with seeds and backgrounds that training did not see. A hard
negative is the same picture with one thing changed in the scene: another object, another colour, swapped
colours, the opposite side, one object more or fewer. Levels: clean; mild (warp, blur 0.8 px, noise 6);
strong (warp, blur 1.5 px, noise 14), at 128 px.

A raw score is corrected as p = (raw - false pass) / (true pass - false pass).
Counting's false passes grow with the threshold and with degradation: where one of four objects is missed,
the picture passes for three. Whether these rates carry over to a generator's pictures is not measured here.
"""

_STRESS = """
## Stress

Share of spoiled pictures that still pass for the original scene ({n} scenes). An upper limit on how
badly drawn an object may be before the verifier refuses it; "left half erased" and the ghosts should
be low, blur may pass.
"""

_FIDELITY = """
## Fidelity

The known sprite refitted around its detection, masked correlation per colour channel ({n} scenes); 0 where
an object was not detected.
"""


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A markdown table."""
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _rate_rows(rates: list[Rate], read: Callable[[Rate], float]) -> Iterable[list[str]]:
    for threshold in sorted({r["threshold"] for r in rates}):
        for level in LEVELS:
            chosen = {r["task"]: read(r) for r in rates if (r["level"], r["threshold"]) == (level, threshold)}
            values = [chosen[task] for task in TASKS]
            yield [f"{threshold}", level, *map(_percent, values), f"**{_percent(fmean(values))}**"]


def rate_tables(rates: list[Rate]) -> str:
    """Two sections of markdown: the true scenes and the hard negatives that passed."""
    header = ("threshold", "level", *TASKS, "mean")
    true = _table(header, _rate_rows(rates, lambda r: r["true_pass"]))
    false = _table(header, _rate_rows(rates, lambda r: r["false_pass"]))
    return (
        f"\n## True scenes passed, % ({rates[0]['n']} a task)\n\n{true}"
        f"\n## Hard negatives passed, %\n\n{false}"
    )


def render(card: dict[str, Any]) -> str:
    """The README of a measured card."""
    measured, architecture = card["measured"], card["architecture"]
    rates: list[Rate] = measured["rates"]
    stress, fidelity = measured["stress"], measured["fidelity"]
    limits = list(next(iter(stress["passed"].values())))
    text = _INTRO.format(
        **card, **{k: architecture[k] for k in ("parameters", "input")}, classes=len(architecture["classes"])
    )
    text += rate_tables(rates)
    text += _STRESS.format(**stress) + "\n"
    text += _table(
        ("picture", *(f"at {limit}" for limit in limits)),
        ([name, *(_percent(row[limit]) for limit in limits)] for name, row in stress["passed"].items()),
    )
    text += _FIDELITY.format(**fidelity) + "\n"
    return text + _table(
        ("picture", "median", "5th percentile"),
        ([name, f"{row['median']:.2f}", f"{row['p5']:.2f}"] for name, row in fidelity["scores"].items()),
    )


def write_report(folder: Path, measured: dict[str, Any]) -> None:
    """Put the measurements into a folder's card and write its README."""
    card = read_card(folder)
    card["measured"] = measured
    write_card(folder, card)
    (folder / "README.md").write_text(render(card))
