"""`twinshot distill`: train a checkpoint for one step, as a run file says."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from twinshot_server.commands.exits import UsageError, one_sentence_errors
from twinshot_server.commands.options import AsJson

_RUNS = ", ".join(sorted(Path(run.name).stem for run in (files("twinshot_distill") / "configs").iterdir()))


def distill(
    run: Annotated[str, typer.Argument(help=f"A run file (TOML), or one that comes along: {_RUNS}.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run's folder; an interrupted run goes on there.")
    ] = Path("out/distill"),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="<name=value>",
            envvar="TWINSHOT_DISTILL_SET",
            help="Replace a setting: data.path=pictures; repeat.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Only encode pictures and captions into the cache.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the run file, and print it with all defaults.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a checkpoint for one step (TwinFlow): all weights, or a LoRA.

    Leaves OUTPUT/checkpoint, which `twinshot serve` takes as it is; OUTPUT/progress.html shows how it goes.
    For several GPUs: torchrun --nproc-per-node 8 --no-python twinshot distill RUN.
    """
    with one_sentence_errors():
        from twinshot_distill.runs import check_run, start_run

        changes = dict(_change(text) for text in settings or [])
        checked = check_run(run, changes)
        if dry_run:
            told = json.dumps(checked.as_json(), indent=1)
        else:
            left = start_run(checked, output, device, prepare_only=prepare_only)
            told = json.dumps(left) if as_json else "\n".join(left.values())
    if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0":
        typer.echo(told)  # torchrun's first process speaks for all


def _change(text: str) -> tuple[str, Any]:
    """A dotted name and its value, read as JSON where it is, else as text."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UsageError(f"{text!r} is not a setting: write NAME=VALUE, such as data.path=pictures.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
