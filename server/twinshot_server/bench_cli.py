"""`twinshot bench`: how fast, in this process and beside others. Tables and one JSON line go to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from twinshot_server.engine_protocol import LOADING_ERRORS
from twinshot_server.load.command import load
from twinshot_server.settings import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from twinshot_engine.benchmark.latency import Job
    from twinshot_engine.config import EngineConfig

    Row = dict[str, Any]

RESULTS = Path("benchmarks/results")
QUALITY = 95

app = typer.Typer(
    help="Measure a server under load, the parts of a request, kernels, and diffusers beside twinshot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(load)

Random = Annotated[
    str | None,
    typer.Option(
        "--random-weights", help="Random weights of a published size, such as z-image; no download."
    ),
]
Checkpoint = Annotated[str, typer.Option(help="'builtin', a folder, or a Hugging Face Hub id.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp8.")]
Precisions = Annotated[list[str] | None, typer.Option(help="bf16 or fp8; repeat the option.")]
Compiled = Annotated[bool, typer.Option(help="Measure the compiled form too, which takes minutes.")]
Only = Annotated[list[str] | None, typer.Option(help="An operation; repeat the option. All if not given.")]
Size = Annotated[str | None, typer.Option(help="Such as 1024x1024; the checkpoint's first if not given.")]
Steps = Annotated[int, typer.Option(min=1, help="Forward passes.")]
Tokens = Annotated[int, typer.Option(min=16, help="Length of the prompt with its template, in tokens.")]
Samples = Annotated[int, typer.Option(min=1, help="How many runs of each part count.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")]
Json = Annotated[bool, typer.Option("--json", envvar="TWINSHOT_JSON", help="Print the JSON line alone.")]
Write = Annotated[bool, typer.Option("--write", help=f"Keep the rows in {RESULTS}/.")]


@app.command()
def latency(
    checkpoint: Checkpoint = "builtin",
    random_weights: Random = None,
    precision: Precision = "auto",
    text_fp8: Annotated[bool, typer.Option("--text-fp8", help="The text encoder in fp8 too.")] = False,
    size: Size = None,
    steps: Steps = 1,
    tokens: Tokens = 128,
    samples: Samples = 30,
    device: Device = "auto",
    as_json: Json = False,
    write: Write = False,
) -> None:
    """Time text, denoise and decode, all three on the device, and a whole request with a JPEG at the end."""
    with _Reporting() as report:
        config = _config(
            _reference(checkpoint, random_weights), device, size, steps, precision, text_fp8=text_fp8
        )
        from twinshot_engine.benchmark.latency import measure_latency, ready_row
        from twinshot_engine.benchmark.timing import clock_ms

        engine = _load(config, report)
        warm_ms = clock_ms(lambda: engine.warm(lambda stage, _done: report(stage)))
        job = _job(size, engine.info.sizes[0], steps, min(tokens, engine.info.max_prompt_tokens), samples)
        rows = measure_latency(engine, job, _jpeg, report)
        rows.append(ready_row(engine, job, warm_ms / 1000))
    _finish(rows, as_json=as_json, write=write, name=f"latency-{engine.info.name}-{engine.info.precision}")


@app.command()
def compare(
    random_weights: Annotated[str, typer.Option(help="A published size, such as z-image.")] = "z-image",
    precision: Precisions = None,
    compiled: Compiled = True,
    size: Size = "1024x1024",
    tokens: Tokens = 128,
    samples: Samples = 30,
    device: Device = "auto",
    as_json: Json = False,
    write: Write = False,
) -> None:
    """Time twinshot beside plain and compiled diffusers: one process, the same weights and inputs."""
    with _Reporting() as report:
        wanted = precision or ["bf16", "fp8"]
        reference = _reference("", random_weights)
        configs = [_config(reference, device, size, 1, each, text_fp8=each == "fp8") for each in wanted]
        from twinshot_engine.benchmark.compare import compare as measure
        from twinshot_engine.benchmark.stock import import_diffusers
        from twinshot_engine.random_weights import find_random

        import_diffusers()  # says at once if it is missing
        job = _job(size, (0, 0), 1, tokens, samples)
        rows: list[Row] = []
        for measured in measure(find_random(reference), configs, job, _jpeg, report, compiled=compiled):
            rows += measured
            if write:  # what took minutes is kept, whatever becomes of the next system
                _write(rows, f"compare-{random_weights}")
    _finish(rows, as_json=as_json, write=write, name=f"compare-{random_weights}")


@app.command()
def kernels(
    only: Only = None,
    compiled: Compiled = False,
    samples: Samples = 30,
    as_json: Json = False,
    write: Write = False,
) -> None:
    """Measure each kernel's bandwidth or TFLOP/s beside a copy or a large product of the same run."""
    with _Reporting() as report:
        report("kernels")
        import torch

        from twinshot_engine.benchmark.rows import facts
        from twinshot_kernels.benchmark import measure_kernels

        try:
            measured = measure_kernels(only or (), compiled=compiled, samples=samples)
        except (ValueError, RuntimeError) as error:
            raise SettingsError(str(error)) from None
        rows = [row | facts(torch.device("cuda")) for row in measured]
    _finish(rows, as_json=as_json, write=write, name="kernels")


class _Reporting:
    """A spinner with the current piece of work on stderr; turns what can be mended into one sentence."""

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __call__(self, work: str) -> None:
        self._progress.update(self._task, description=work)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._progress.stop()
        if isinstance(error, LOADING_ERRORS):
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2)


def _reference(checkpoint: str, random_weights: str | None) -> str:
    return checkpoint if random_weights is None else f"random:{random_weights}"


def _config(
    checkpoint: str, device: str, size: str | None, steps: int, precision: str, *, text_fp8: bool
) -> EngineConfig:
    from twinshot_engine.config import EngineConfig

    try:
        config = EngineConfig(
            checkpoint,
            device,
            precision,
            text_fp8=text_fp8,
            sizes=None if size is None else (_pixels(size),),
            steps=(steps,),
        )
        config.placement()
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return config


def _load(config: EngineConfig, report: _Reporting) -> Any:
    from twinshot_engine.engine import Engine

    return Engine.load(config, lambda stage, done: report(f"{stage} {done:.0%}"))


def _job(size: str | None, default: tuple[int, int], steps: int, tokens: int, samples: int) -> Job:
    from twinshot_engine.benchmark.latency import Job

    width, height = default if size is None else _pixels(size)
    return Job(width, height, steps, tokens, samples)


def _pixels(size: str) -> tuple[int, int]:
    width, cross, height = size.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise SettingsError(f"The size {size!r} is not WIDTHxHEIGHT, such as 1024x1024.")
    return int(width), int(height)


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    from twinshot_server.images import ImageFormat, encode

    return encode(image, ImageFormat.JPEG, QUALITY)


def _finish(rows: Sequence[Row], *, as_json: bool, write: bool, name: str) -> None:
    if not as_json:
        _print_table(rows)
    if write:
        _write(rows, name)
    sys.stdout.write(json.dumps(list(rows)) + "\n")


def _print_table(rows: Sequence[Row]) -> None:
    first = rows[0]
    shown = _KERNEL_COLUMNS if first["benchmark"] == "kernels" else _LATENCY_COLUMNS
    columns = [column for column in shown if any(column in row for row in rows)]
    title = f"{first['gpu']}, {first['versions']}, commit {first['commit']}, {first['date']}"
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


_LATENCY_COLUMNS = (
    "system",
    "precision",
    "part",
    "median_ms",
    "p95_ms",
    "samples",
    "peak_gb",
    "denoise_error",
    "decode_levels",
)
_KERNEL_COLUMNS = ("op", "shape", "dtype", "median_us", "gb_per_s", "tflop_per_s", "fraction", "reference_us")


def _write(rows: Sequence[Row], name: str) -> None:
    gpu = "-".join(str(rows[0]["gpu"]).partition(" (")[0].split()).lower()
    path = RESULTS / f"{name.replace(':', '-').replace('/', '-')}-{gpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=1) + "\n")
    typer.echo(f"written to {path}", err=True)
