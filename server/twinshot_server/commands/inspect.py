"""`twinshot inspect`: what a checkpoint is, what it needs and what it lacks, without loading it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from twinshot_server.commands.build import inspect_engines
from twinshot_server.commands.exits import ExitCode, one_sentence_errors
from twinshot_server.commands.options import (
    Adapters,
    AsJson,
    Base,
    Device,
    MemoryOption,
    PrecisionOption,
    TextFp8,
    option,
)
from twinshot_server.commands.progress import Bar
from twinshot_server.settings import DEFAULTS, Settings

if TYPE_CHECKING:
    from twinshot_server.inspection import Adapter, Inspection, Need, Part

_PIPE_COLUMNS = 140
_FEW = "the checkpoint was distilled for few"
# An adapter, or one that was merged before, leaves no sign of what it was trained for.
_PERHAPS_NOT_FEW = (
    "its weights do not tell whether it was distilled for few: unless it or an adapter was, few look poor"
)


def inspect(
    checkpoint: Annotated[
        str,
        typer.Argument(
            envvar="TWINSHOT_CHECKPOINT", help="'builtin', a folder, a file, or a Hub id that is cached."
        ),
    ] = DEFAULTS.checkpoint,
    base: Base = DEFAULTS.base,
    adapter: Adapters = None,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    memory: MemoryOption = DEFAULTS.memory,
    sizes: Annotated[str, option("sizes")] = DEFAULTS.sizes,
    steps: Annotated[str, option("steps")] = DEFAULTS.steps,
    as_json: AsJson = False,
) -> None:
    """Tell a checkpoint's family, parts, memory and faults from its configs and headers.

    Nothing is downloaded and no weight is read. Ends with 1 if the checkpoint cannot be served.
    Of a folder that `twinshot build` made, it verifies every engine and tells its inputs and outputs.
    """
    if (Path(checkpoint).expanduser() / "manifest.json").is_file():
        inspect_engines(Path(checkpoint).expanduser(), as_json=as_json)
        return
    stay_offline()
    with one_sentence_errors(), Bar() as bar:
        bar("importing torch", 0.0)
        settings = Settings(
            checkpoint=checkpoint,
            base=base,
            adapter=tuple(adapter or ()),
            device=device,
            precision=precision,
            text_fp8=text_fp8,
            memory=memory,
            sizes=sizes,
            steps=steps,
        )
        from twinshot_server.inspection import inspect as look

        found = look(settings)
    if as_json:
        typer.echo(json.dumps(found.facts()))
    else:
        _print(found)
    if found.faults:
        raise typer.Exit(ExitCode.FAILED)


def stay_offline() -> None:
    """Have the Hub's client, which reads this when it is imported, look at its cache alone."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _print(found: Inspection) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS, markup=False, highlight=False)
    for name, value in _facts(found):
        console.print(f"{name:<11} {value}", soft_wrap=True)
    console.print(
        _table(("part", "parameters", "stored", "files", "format"), map(_part_row, found.parts)), end=""
    )
    if found.adapters:
        heads = ("adapter", "rank", "weights", "file")
        console.print(_table(heads, map(_adapter_row, found.adapters)), end="")
    if found.needs:
        columns = ("precision", "weights", "workspace", "needed", _free(found))
        console.print(_table(columns, (_need_row(need, found.free_bytes) for need in found.needs)), end="")
    for problem in found.faults:
        console.print(f"Problem: {problem}", style="red", soft_wrap=True)
    if not found.faults:
        console.print("Nothing is missing.")


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "checkpoint", f"{found.reference} ({found.folder})"
    if found.revision:
        yield "revision", found.revision
    yield "family", found.family
    if found.sizes:
        steps = ", ".join(map(str, found.steps))
        yield "steps", f"{steps} ({_FEW if found.few_steps else _PERHAPS_NOT_FEW})"
        yield "sizes", found.sizes
        yield "prompts", f"up to {found.max_prompt_tokens} tokens"


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place in (0, 4) else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _part_row(part: Part) -> tuple[str, ...]:
    from twinshot_server.machine import in_words

    if part.problem:
        return part.name, "", "", "", "cannot be read"
    parameters = f"{part.parameters / 1e6:,.1f} M" if part.parameters else ""
    return (
        f"{part.name} (base's)" if part.from_base else part.name,
        parameters,
        in_words(part.bytes) if part.bytes else "",
        str(part.files),
        ", ".join(part.formats),
    )


def _adapter_row(adapter: Adapter) -> tuple[str, ...]:
    name = adapter.name or "(merged)"
    if adapter.problem:
        return name, "", "", "cannot be used"
    return name, str(adapter.rank), str(adapter.weights), adapter.source


def _need_row(need: Need, free: int | None) -> tuple[str, ...]:
    from twinshot_server.machine import in_words

    name = f"{need.precision} (chosen)" if need.chosen else need.precision
    if not need.total:
        return name, "", "", "", "not possible"
    sizes = in_words(need.weight_bytes), in_words(need.workspace_bytes), in_words(need.total)
    return name, *sizes, _verdict(need, free)


def _verdict(need: Need, free: int | None) -> str:
    if need.problem:
        return "not possible here"
    if free is None:
        return ""
    return "fits" if need.total <= free else "does not fit"


def _free(found: Inspection) -> str:
    from twinshot_server.machine import in_words

    return f"{found.device}, {in_words(found.free_bytes)} free"
