"""Evaluations from their settings to their files: what the command line calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluate import load_auditor
from twinshot_distill.evaluation.builtin import Judges, Plan, measure
from twinshot_distill.evaluation.drawing import Report
from twinshot_distill.evaluation.html_report import write_report
from twinshot_distill.evaluation.keeping import KeptRows, identity, writing
from twinshot_distill.evaluation.official import Drawing, write_dpg, write_geneval
from twinshot_distill.evaluation.trials import languages_of
from twinshot_distill.report import say
from twinshot_distill.verifier.scoring import Verifier
from twinshot_distill.world.scenes import Split
from twinshot_distill.world.vocabulary import OBJECTS
from twinshot_engine.benchmark.rows import facts as circumstances
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine


def evaluate_builtin(
    settings: Mapping[str, Any],
    splits: Sequence[str],
    count: int,
    seeds: int,
    pictures: int,
    out: Path,
    report: Report,
) -> tuple[list[dict[str, Any]], Path]:
    """Measure a checkpoint of the built-in world; returns the rows and the report's page.

    Rows are kept in `out` as they come, until the report is there: after an interrupt the same call goes on.

    Raises:
        TrainingError: the checkpoint is not of the built-in world, or the folder cannot be written.
        CheckpointError: it cannot be loaded.
    """
    with writing("The report", out):
        out.mkdir(parents=True, exist_ok=True)
    engine = _load(settings, report)
    known = {entry.name for entry in OBJECTS}
    if not set(engine.info.vocabulary.get("objects", ())) & known:
        raise TrainingError(
            f"{engine.info.name} does not say that it knows the built-in world's objects, and the built-in "
            "verifier knows no others: use 'twinshot evaluate geneval' or 'dpg'."
        )
    judges = Judges(Verifier.load().to(engine.info.device), load_auditor())
    combinations = cast("tuple[Split, ...]", tuple(splits))
    languages = languages_of(engine.info.vocabulary)
    plan = Plan(tuple(settings["steps"]), combinations, languages, count, seeds, pictures=pictures)
    facts = _facts(engine, plan)
    judged = {"auditor": judges.auditor is not None, "threshold": judges.verifier.threshold}
    undated = {name: value for name, value in facts.items() if name != "date"}
    kept = KeptRows(out / "measuring.json", undated | judged)
    if kept.before:
        say(f"going on after {kept.before} rows of an interrupted call")
    try:
        findings = measure(engine, judges, plan, str(settings["checkpoint"]), kept, report)
    except ValueError as error:
        raise TrainingError(f"{engine.info.name} cannot be measured: {error}.") from error
    page = write_report(out, findings, facts)
    kept.forget()
    return findings.rows, page


def draw_geneval(
    settings: Mapping[str, Any], metadata: Path, out: Path, size: str | None, report: Report
) -> int:
    """Draw GenEval's prompts; see :func:`~twinshot_distill.evaluation.official.write_geneval`."""
    engine = _load(settings, report)
    return write_geneval(engine, metadata, out, _drawing(engine, size, settings), report)


def draw_dpg(settings: Mapping[str, Any], prompts: Path, out: Path, size: str | None, report: Report) -> int:
    """Draw DPG-Bench's prompts; see :func:`~twinshot_distill.evaluation.official.write_dpg`."""
    engine = _load(settings, report)
    return write_dpg(engine, prompts, out, _drawing(engine, size, settings), report)


def _load(settings: Mapping[str, Any], report: Report) -> Engine:
    try:
        engine = Engine.load(EngineConfig(**settings), report)
    except ValueError as error:
        raise TrainingError(f"{error}.") from error
    engine.warm(report)
    return engine


def _drawing(engine: Engine, size: str | None, settings: Mapping[str, Any]) -> Drawing:
    width, height = engine.info.sizes[0]
    if size is not None:
        found = re.fullmatch(r"(\d+)x(\d+)", size)
        if found is None:
            raise TrainingError(f"size {size!r} is not WIDTHxHEIGHT, such as 1024x1024.")
        width, height = int(found[1]), int(found[2])
    return Drawing(width, height, settings["steps"][0])


def _facts(engine: Engine, plan: Plan) -> dict[str, Any]:
    """What a reader must know to measure it again."""
    info = engine.info
    return {
        "name": info.name,
        **identity(info),
        "count": plan.count,
        "seeds": plan.seeds,
        "device": info.device,
        **circumstances(torch.device(info.device)),
    }
