"""Score a checkpoint in its own domain: GenEval's six tasks, judged by the frozen verifier.

    python -m twinshot_distill.evaluate CHECKPOINT --steps 1 --steps 2 --out results.json

Pictures come from the engine, the way a server makes them. Prompts are paraphrased captions of scenes that
training never saw (or with `--combinations seen`, of ones like it saw). Reported beside the score: the
strict threshold, the fidelity of the drawing, and the shuffled control, where every picture is judged by
another picture's prompt. This is a "GenEval-style" score by our own detector, not a GenEval score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from twinshot_distill.verifier.scoring import STRICT, Verifier
from twinshot_distill.world.captions import caption
from twinshot_distill.world.scenes import TASKS, Scene, Split, sample_scene
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Trial:
    """One picture to be asked for and judged."""

    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the verifier says of a task's pictures: passes, strict passes, passes when shuffled, fidelity."""

    passed: list[bool]
    strict: list[bool]
    shuffled: list[bool]
    fidelity: list[float]


def trials(task: Any, split: Split, count: int) -> list[Trial]:
    """The same prompts and seeds every time."""
    rng = Random(f"evaluate-{task}-{split}")
    scenes = [sample_scene(rng, task, split) for _ in range(count)]
    return [Trial(scene, caption(rng, scene), rng.getrandbits(32)) for scene in scenes]


def draw(
    engine: Engine, asked: Sequence[Trial], steps: int, guidance: float = 1.0
) -> Iterator[NDArray[np.uint8]]:
    """Pictures [B, H, W, 3] of the trials, batch by batch; guidance as in a request."""
    requests = [GenerateRequest(trial.prompt, trial.seed, steps=steps, guidance=guidance) for trial in asked]
    for start in range(0, len(requests), engine.max_batch):
        yield engine.generate(requests[start : start + engine.max_batch]).images


def judge(verifier: Verifier, pictures: torch.Tensor, asked: Sequence[Trial]) -> Verdicts:
    """Check pictures against their own scenes and, as a control, against their neighbours'."""
    scenes = [trial.scene for trial in asked]
    return Verdicts(
        verifier.check(pictures, scenes),
        verifier.check(pictures, scenes, threshold=STRICT),
        verifier.check(pictures, [*scenes[1:], scenes[0]]),
        verifier.fidelity(pictures, scenes),
    )


def _rows(task: str, verdicts: Verdicts, common: dict[str, Any]) -> dict[str, Any]:
    return common | {
        "task": task,
        "score": round(mean(verdicts.passed), 4),
        "strict_score": round(mean(verdicts.strict), 4),
        "shuffled_score": round(mean(verdicts.shuffled), 4),
        "fidelity_median": round(median(verdicts.fidelity), 4),
        "n": len(verdicts.passed),
    }


def _mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("score", "strict_score", "shuffled_score", "fidelity_median")
    averages = {key: round(mean(row[key] for row in rows), 4) for key in keys}
    return rows[0] | averages | {"task": "mean", "n": sum(row["n"] for row in rows)}


def evaluate(
    engine: Engine,
    verifier: Verifier,
    *,
    method: str,
    steps: int,
    split: Split,
    count: int,
    guidance: float = 1.0,
) -> list[dict[str, Any]]:
    """One flat row a task and their mean, as kept in `benchmarks/results`."""
    common = {
        "benchmark": "geneval-style",
        "method": method,
        "steps": steps,
        "combinations": split,
        "precision": engine.info.precision,
        "text_precision": engine.info.text_precision,
        "device": engine.info.device,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"torch": engine.info.torch_version},
    }
    rows = []
    for task in track(TASKS, f"{steps} steps, {split}", console=_console):
        asked = trials(task, split, count)
        pictures = torch.from_numpy(np.concatenate(list(draw(engine, asked, steps, guidance))))
        rows.append(_rows(task, judge(verifier, pictures, asked), common))
    return [*rows, _mean_row(rows)]


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("steps", "combinations", "task", "score", "strict", "shuffled", "fidelity", "n")
    for row in rows:
        keys = (
            "steps",
            "combinations",
            "task",
            "score",
            "strict_score",
            "shuffled_score",
            "fidelity_median",
            "n",
        )
        table.add_row(*(str(row[key]) for key in keys), style="bold" if row["task"] == "mean" else "")
    Console().print(table)


def main(
    checkpoint: Annotated[str, typer.Argument(help="Folder, Hub id, or 'builtin'.")] = "builtin",
    steps: Annotated[list[int] | None, typer.Option(help="Step counts to score; repeat the option.")] = None,
    combinations: Annotated[list[str] | None, typer.Option(help="unseen, seen, or both (repeat).")] = None,
    count: Annotated[int, typer.Option(help="Pictures a task.")] = 200,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp8.")] = "fp32",
    text_fp8: Annotated[bool, typer.Option("--text-fp8", help="The text encoder in fp8 too.")] = False,
    method: Annotated[str, typer.Option(help="Name of the training method in the rows.")] = "twinflow",
    out: Annotated[Path | None, typer.Option(help="JSON file for the rows.")] = None,
) -> None:
    """Score CHECKPOINT with the frozen verifier."""
    counts = steps or [1]
    engine = Engine.load(
        EngineConfig(checkpoint, device, precision, text_fp8, max_batch=batch, steps=tuple(counts))
    )
    engine.warm()
    verifier = Verifier.load().to(engine.info.device)
    rows: list[dict[str, Any]] = []
    for split in combinations or ["unseen"]:
        if split not in ("seen", "unseen"):
            raise typer.BadParameter(f"{split!r} is not 'seen' or 'unseen'", param_hint="--combinations")
        for number in counts:
            rows += evaluate(
                engine, verifier, method=method, steps=number, split=cast("Split", split), count=count
            )
            if out is not None:
                out.write_text(json.dumps(rows, indent=1) + "\n")
    _print(rows)


if __name__ == "__main__":
    typer.run(main)
