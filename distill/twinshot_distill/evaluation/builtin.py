"""The built-in benchmark as a report: scores with intervals, controls, curve over steps, diversity, pictures.

GenEval's six tasks in as much of the built-in world as the checkpoint was taught, judged by the frozen
verifier and by the auditor: a "GenEval-style" score, never a GenEval score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinshot_distill import verifier
from twinshot_distill.auditor.judge import Auditor
from twinshot_distill.evaluate import judge, mean_of, second_opinion
from twinshot_distill.evaluation.drawing import Report, draw_all
from twinshot_distill.evaluation.keeping import KeptRows
from twinshot_distill.evaluation.statistics import (
    corrected,
    judge_errors,
    mean_interval,
    pairwise_distance,
    shares_below,
    wilson,
)
from twinshot_distill.evaluation.trials import Trial, trials
from twinshot_distill.families.z_image import ZImageEncoders
from twinshot_distill.verifier.freeze import read_card
from twinshot_distill.verifier.scoring import STRICT, Verifier
from twinshot_distill.world.captions import plain_caption
from twinshot_distill.world.composer import Composer, arrange
from twinshot_distill.world.scenes import TASKS, Split
from twinshot_engine.engine import Engine
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.types import GenerateRequest

LOW_FIDELITY = 0.5
VERIFIER_FOLDER = Path(verifier.__file__).parent
CEILING = "ceiling"
"""Stands for the step count in rows of the control from above."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        steps: step counts.
        splits: combinations, seen or unseen.
        languages: of the prompts; the same scenes are asked for in each.
        count: prompts a task.
        seeds: pictures a prompt.
        diversity_prompts: prompts whose pictures are compared with each other.
        diversity_seeds: pictures of each of them.
        pictures: how many are shown.
    """

    steps: tuple[int, ...]
    splits: tuple[Split, ...] = ("unseen",)
    languages: tuple[str, ...] = ("en",)
    count: int = 300
    seeds: int = 1
    diversity_prompts: int = 12
    diversity_seeds: int = 8
    pictures: int = 48


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured.

    Attributes:
        rows: one flat row a task, combination, language and step count, the controls among them.
        diversity: mean pairwise distance by step count, and the ends of its 95 % interval over prompts.
        pictures: [N, H, W, 3] by step count, of the same prompts and seeds.
        captions: of the pictures.
    """

    rows: list[dict[str, Any]]
    diversity: dict[int, tuple[float, float, float]]
    pictures: dict[int, NDArray[np.uint8]]
    captions: list[str]


@dataclass(frozen=True, slots=True)
class Judges:
    """The verifier, and the auditor if it is there."""

    verifier: Verifier
    auditor: Auditor | None = None


def measure(
    engine: Engine, judging: Judges, plan: Plan, reference: str, kept: KeptRows, report: Report
) -> Findings:
    """Measure a checkpoint in its own domain.

    Args:
        engine: of the checkpoint, with the plan's step counts.
        judging: the judges, on any device.
        plan: what is measured.
        reference: names the checkpoint, whose autoencoder gives the ceiling.
        kept: rows that an earlier call has measured in the same way, and those of this one.
        report: receives progress.
    """
    rows: list[dict[str, Any]] = []
    for split in plan.splits:
        rows += _ceiling_rows(engine, judging, reference, split, plan.count, kept, report)
        for language, steps in product(plan.languages, plan.steps):
            rows += _score_rows(engine, judging, split, language, steps, plan, kept, report)
    return Findings(rows, *_looks(engine, plan, report))


def _score_rows(
    engine: Engine,
    judging: Judges,
    split: Split,
    language: str,
    steps: int,
    plan: Plan,
    kept: KeptRows,
    report: Report,
) -> list[dict[str, Any]]:
    def scored(facts: dict[str, Any]) -> dict[str, Any]:
        task = facts["task"]
        asked = reseeded(trials(task, split, plan.count, engine.info.vocabulary, language), plan.seeds)
        requests = [GenerateRequest(trial.prompt, trial.seed, steps=steps) for trial in asked]
        drawn = list(draw_all(engine, requests, f"{steps} steps, {split}, {language}, {task}", report))
        return _row(judging, torch.from_numpy(np.stack(drawn)), asked, facts)

    facts = {"steps": steps, "combinations": split, "language": language}
    return _with_mean([kept.row(facts | {"task": task}, scored) for task in TASKS])


def _with_mean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, mean_row(rows)]


def reseeded(asked: Sequence[Trial], seeds: int) -> list[Trial]:
    """Each trial with as many seeds, counted up from its own; the first round is the trials as they are."""
    return [replace(trial, seed=(trial.seed + k) % 2**32) for k in range(seeds) for trial in asked]


def _ceiling_rows(
    engine: Engine,
    judging: Judges,
    reference: str,
    split: Split,
    count: int,
    kept: KeptRows,
    report: Report,
) -> list[dict[str, Any]]:
    """The control from above: true renders through the checkpoint's autoencoder, judged the same way."""
    encoders = ZImageEncoders(find_checkpoint(reference), torch.device("cpu"))
    composer = Composer("cpu", scene_variations=4, plain_variations=4)

    def scored(facts: dict[str, Any]) -> dict[str, Any]:
        task = facts["task"]
        report(f"ceiling, {split}, {task}", TASKS.index(task) / len(TASKS))
        asked = trials(task, split, min(count, 100), engine.info.vocabulary)
        restored = [_round_trip(encoders, composer, trial) for trial in asked]
        return _row(judging, torch.cat(restored), asked, facts)

    facts = {"steps": CEILING, "combinations": split, "language": None}
    return _with_mean([kept.row(facts | {"task": task}, scored) for task in TASKS])


def _round_trip(encoders: ZImageEncoders, composer: Composer, trial: Trial) -> Tensor:
    picture = composer.render(arrange(Random(trial.seed), [trial.scene]))
    restored = encoders.decode(encoders.encode(picture))
    return ((restored.clamp(-1, 1) + 1) / 2).float()


def _row(judging: Judges, pictures: Tensor, asked: Sequence[Trial], facts: dict[str, Any]) -> dict[str, Any]:
    verdicts = judge(judging.verifier, pictures, asked, judging.auditor)
    score, count = fmean(verdicts.passed), len(verdicts.passed)
    errors = judge_errors(read_card(VERIFIER_FOLDER), facts["task"], judging.verifier.threshold)
    low, high = wilson(score, count)
    return {
        "benchmark": "geneval-style",
        **facts,
        "n": count,
        "score": round(score, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "corrected_score": round(corrected(score, *errors), 4),
        "strict_score": round(fmean(verdicts.strict), 4),
        "strict_threshold": STRICT,
        "shuffled_score": round(fmean(verdicts.shuffled), 4),
        "fidelity_median": round(median(verdicts.fidelity), 4),
        "low_fidelity_share": round(shares_below(verdicts.fidelity, LOW_FIDELITY), 4),
        **second_opinion(verdicts),
    }


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over tasks; its interval is that of as many independent trials in all."""
    count = sum(row["n"] for row in rows)
    keys = (
        "score",
        "corrected_score",
        "strict_score",
        "shuffled_score",
        "fidelity_median",
        "low_fidelity_share",
        "auditor_score",
        "disagreement",
    )
    means = {key: mean_of([row[key] for row in rows]) for key in keys}
    low, high = wilson(fmean(row["score"] for row in rows), count)
    return rows[0] | means | {"task": "mean", "n": count, "low": round(low, 4), "high": round(high, 4)}


def _looks(
    engine: Engine, plan: Plan, report: Report
) -> tuple[dict[int, tuple[float, float, float]], dict[int, NDArray[np.uint8]], list[str]]:
    """Diversity, and pictures to look at, for each step count."""
    each = -(-max(plan.pictures, plan.diversity_prompts) // len(TASKS))
    by_task = [trials(task, plan.splits[0], each, engine.info.vocabulary) for task in TASKS]
    asked = [trial for group in zip(*by_task, strict=True) for trial in group]
    shown, varied = asked[: plan.pictures], asked[: plan.diversity_prompts]
    diversity, pictures = {}, {}
    for steps in plan.steps:
        requests = [GenerateRequest(trial.prompt, trial.seed, steps=steps) for trial in shown]
        pictures[steps] = np.stack(list(draw_all(engine, requests, f"pictures, {steps} steps", report)))
        diversity[steps] = _diversity(engine, varied, plan.diversity_seeds, steps, report)
    return diversity, pictures, [plain_caption(trial.scene) for trial in shown]


def _diversity(
    engine: Engine, asked: Sequence[Trial], seeds: int, steps: int, report: Report
) -> tuple[float, float, float]:
    """Pairwise distance of pictures that differ in their seed alone: mean over prompts and its interval."""
    distances = []
    for trial in asked:
        requests = [GenerateRequest(trial.prompt, seed, steps=steps) for seed in range(seeds)]
        drawn = draw_all(engine, requests, f"diversity, {steps} steps", report)
        distances.append(pairwise_distance(np.stack(list(drawn))))
    low, high = mean_interval(distances)
    return round(fmean(distances), 4), round(low, 4), round(high, 4)
