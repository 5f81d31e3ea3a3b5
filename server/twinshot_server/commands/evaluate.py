"""`twinshot evaluate`: the built-in benchmark, and pictures for GenEval's and DPG-Bench's own scorers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twinshot_server.commands.exits import UsageError, one_sentence_errors
from twinshot_server.commands.options import (
    AsJson,
    BackendOption,
    Checkpoint,
    Device,
    PrecisionOption,
    TextFp8,
    number,
)
from twinshot_server.commands.progress import Bar
from twinshot_server.settings import DEFAULTS

app = typer.Typer(
    help="Score a checkpoint, or draw what the official scorers of GenEval and DPG-Bench read.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Steps = Annotated[
    list[int] | None, typer.Option("--steps", help="Forward passes; repeat for several. Default 1.")
]
Batch = Annotated[int, number("--batch", text="Pictures in one call of the engine.")]


@app.command()
def builtin(
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("report"),
    steps: Steps = None,
    combinations: Annotated[
        list[str] | None, typer.Option(help="unseen, seen, or both (repeat). Default unseen.")
    ] = None,
    count: Annotated[int, number("--count", text="Prompts a task.")] = 300,
    seeds: Annotated[int, number("--seeds", text="Pictures of each prompt.")] = 1,
    pictures: Annotated[int, number("--pictures", text="Pictures in the report.")] = 48,
    batch: Batch = 8,
    device: Device = DEFAULTS.device,
    backend: BackendOption = DEFAULTS.backend,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    as_json: AsJson = False,
) -> None:
    """Score a checkpoint of the built-in world with the frozen verifier, and write an HTML report."""
    with one_sentence_errors(), Bar() as bar:
        splits = tuple(combinations or ["unseen"])
        if unknown := sorted(set(splits) - {"seen", "unseen"}):
            raise UsageError(f"--combinations {unknown[0]!r} is not 'seen' or 'unseen'.")
        if min(count, seeds, pictures) < 1:
            raise UsageError(
                f"--count {count}, --seeds {seeds} and --pictures {pictures} must be at least 1."
            )
        settings = _engine(checkpoint, steps, batch, device, backend, precision, text_fp8=text_fp8)
        from twinshot_distill.evaluation.runs import evaluate_builtin

        rows, page = evaluate_builtin(settings, splits, count, seeds, pictures, output, bar)
    _tell(rows, page, as_json=as_json)


@app.command()
def geneval(
    metadata: Annotated[Path, typer.Argument(help="GenEval's evaluation_metadata.jsonl.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path(
        "geneval"
    ),
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    size: Annotated[str | None, typer.Option(help="Such as 1024x1024; the model's own if not given.")] = None,
    steps: Annotated[int, number("--steps", text="Forward passes.")] = 1,
    batch: Batch = 4,
    device: Device = DEFAULTS.device,
    backend: BackendOption = DEFAULTS.backend,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    as_json: AsJson = False,
) -> None:
    """Draw GenEval's prompts, four pictures each, in the folders that its evaluator reads."""
    with one_sentence_errors(), Bar() as bar:
        settings = _engine(checkpoint, [steps], batch, device, backend, precision, text_fp8=text_fp8)
        from twinshot_distill.evaluation.runs import draw_geneval

        drawn = draw_geneval(settings, metadata, output, size, bar)
    _tell_drawn(drawn, output, as_json=as_json)


@app.command()
def dpg(
    prompts: Annotated[Path, typer.Argument(help="DPG-Bench's folder of prompts, or JSON lines of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the sheets.")] = Path("dpg"),
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    size: Annotated[str | None, typer.Option(help="Such as 1024x1024; the model's own if not given.")] = None,
    steps: Annotated[int, number("--steps", text="Forward passes.")] = 1,
    batch: Batch = 4,
    device: Device = DEFAULTS.device,
    backend: BackendOption = DEFAULTS.backend,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    as_json: AsJson = False,
) -> None:
    """Draw DPG-Bench's prompts, each as a sheet of 2 x 2 pictures, as its scorer reads them."""
    with one_sentence_errors(), Bar() as bar:
        settings = _engine(checkpoint, [steps], batch, device, backend, precision, text_fp8=text_fp8)
        from twinshot_distill.evaluation.runs import draw_dpg

        drawn = draw_dpg(settings, prompts, output, size, bar)
    _tell_drawn(drawn, output, as_json=as_json)


def _engine(
    checkpoint: str,
    steps: list[int] | None,
    batch: int,
    device: str,
    backend: Any,
    precision: Any,
    *,
    text_fp8: bool,
) -> dict[str, Any]:
    """What an engine is loaded with."""
    if batch < 1:
        raise UsageError(f"--batch {batch} must be at least 1.")
    return {
        "checkpoint": checkpoint,
        "steps": _supported(steps or [1]),
        "max_batch": batch,
        "device": device,
        "backend": str(backend),
        "precision": str(precision),
        "text_fp8": text_fp8,
    }


def _supported(steps: list[int]) -> tuple[int, ...]:
    """Each step count once, if there is a schedule for it."""
    from twinshot_engine.schedule import SUPPORTED_STEPS

    for count in steps:
        if count not in SUPPORTED_STEPS:
            raise UsageError(
                f"--steps {count} is not supported: {SUPPORTED_STEPS[0]} to {SUPPORTED_STEPS[-1]} are."
            )
    return tuple(dict.fromkeys(steps))


def _tell_drawn(drawn: int, out: Path, *, as_json: bool) -> None:
    facts = {"drawn": drawn, "folder": str(out)}
    typer.echo(json.dumps(facts) if as_json else f"{drawn} prompts drawn into {out}")


def _tell(rows: list[dict[str, Any]], page: Path, *, as_json: bool) -> None:
    from twinshot_distill.evaluation.html_report import as_steps

    means = [row for row in rows if row["task"] == "mean"]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    for row in means:
        asked = [as_steps(row["steps"]), row["language"], row["combinations"]]
        typer.echo(
            f"{', '.join(filter(None, asked))}: {row['score']:.3f} "
            f"({row['low']:.3f} to {row['high']:.3f}), strict {row['strict_score']:.3f}, "
            f"fidelity {row['fidelity_median']:.3f}, {_second_opinion(row)}, n {row['n']}"
        )
    typer.echo(str(page))


def _second_opinion(row: dict[str, Any]) -> str:
    if row["auditor_score"] is None:
        return "no auditor"
    return f"auditor {row['auditor_score']:.3f} (disagrees on {row['disagreement']:.3f})"
