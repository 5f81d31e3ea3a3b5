"""`twinshot bench load`. Results go to stdout, the last line as JSON; progress to stderr."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_COLUMNS = {
    "size": "size",
    "sent": "sent",
    "served": "served",
    "median_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "images_per_second": "images/s",
    "goodput_per_second": "in time/s",
    "refused": "refused",
    "refusal_p99_ms": "refusal p99 ms",
    "left": "left",
    "failed": "failed",
    "megabytes": "MB",
}


def load(
    url: Annotated[str, typer.Option(help="The server, without /v1.")] = "http://127.0.0.1:8000",
    rate: Annotated[float, typer.Option(help="Requests a second; arrivals are Poisson.")] = 2.0,
    seconds: Annotated[float, typer.Option(help="How long requests are sent.")] = 30.0,
    sizes: Annotated[str, typer.Option(help="Sizes and weights, as 1024x1024=3,512x512=1.")] = "auto",
    deadline_ms: Annotated[float, typer.Option(help="An answer counts as good if it came by then.")] = 1000.0,
    tell_deadline: Annotated[
        bool, typer.Option(help="Send the deadline along, which twinshot can refuse by.")
    ] = False,
    slow: Annotated[float, typer.Option(help="Part of the clients that read slowly, 0 to 1.")] = 0.0,
    leaving: Annotated[float, typer.Option(help="Part of the clients that leave early, 0 to 1.")] = 0.0,
    image_format: Annotated[
        str, typer.Option("--format", envvar="TWINSHOT_BENCH_LOAD_FORMAT", help="png, jpeg or webp.")
    ] = "png",
    model: Annotated[str | None, typer.Option(help="The model's name, where the server wants one.")] = None,
    key: Annotated[str | None, typer.Option(envvar="TWINSHOT_API_KEY", help="An API key.")] = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals: same seed, same run.")] = 0,
    system: Annotated[str, typer.Option(help="What is measured, for the rows.")] = "twinshot",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the rows in this file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", envvar="TWINSHOT_JSON", help="Print the JSON line alone.")
    ] = False,
) -> None:
    """Put a server that speaks OpenAI's images API under open-loop load.

    Requests are sent when their moment has come, whether or not others were answered, as users do.
    """
    from twinshot_server.load.clients import Target, UnreachableError
    from twinshot_server.load.plan import LoadPlan, PlanError, parse_sizes

    try:
        plan = LoadPlan(rate, seconds, parse_sizes(sizes), slow, leaving, seed=seed)
        extra = {"deadline_ms": int(deadline_ms)} if tell_deadline else {}
        target = Target(url, key, model, image_format, extra=extra)
        rows = measure_load(target, plan, deadline_ms, system)
    except (PlanError, UnreachableError) as error:
        typer.echo(f"Error: {error}.", err=True)
        raise typer.Exit(2) from None
    if not as_json:
        _print_table(rows)
    if output is not None:
        output.write_text(json.dumps(rows, indent=1) + "\n")
    typer.echo(json.dumps(rows[-1]))


def measure_load(target: Any, plan: Any, deadline_ms: float, system: str) -> list[dict[str, Any]]:
    """Apply the load under a progress bar; rows by size, and last one of all together."""
    from twinshot_server.load.clients import apply_load, find_model
    from twinshot_server.load.summary import summarise

    served = asyncio.run(find_model(target))
    expected = int(plan.rate * plan.seconds)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("requests", total=expected)
        outcomes = asyncio.run(
            apply_load(
                target, plan, lambda sent, done: bar.update(task, completed=done, total=max(sent, expected))
            )
        )
    facts = _describe(served, system) | {"rate": plan.rate, "seconds": plan.seconds, "slow": plan.slow}
    facts |= {"leaving": plan.leaving, "format": target.image_format}
    return [facts | row for row in summarise(outcomes, plan, deadline_ms)]


def _describe(model: dict[str, Any], system: str) -> dict[str, Any]:
    """What was measured, and where."""
    import torch

    from twinshot_engine.benchmark.rows import facts

    return {
        "benchmark": "load",
        "system": system,
        "checkpoint": model.get("id"),
        "family": model.get("family"),
        "precision": model.get("precision"),
        "part": "request",
        **facts(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table()
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*("" if row[name] is None else str(row[name]) for name in _COLUMNS))
    console = Console()
    console.print(table, width=None if console.is_terminal else 150)
