"""The command line: `twinshot generate`, `twinshot serve`, `twinshot info`.

Results go to stdout, progress and errors to stderr. Bad input ends with exit code 2 and one sentence.
What needs torch or FastAPI is imported inside the commands, so that help and usage errors come at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_server.bench_cli import app as bench
from twinshot_server.images import ImageFormat
from twinshot_server.listening import ListenError
from twinshot_server.saving import OutputError, check_writable, format_for
from twinshot_server.schemas import GenerateBody
from twinshot_server.settings import (
    DEFAULTS,
    Backend,
    Batching,
    LogFormat,
    LogLevel,
    Precision,
    Settings,
    SettingsError,
)
from twinshot_server.validation import describe

if TYPE_CHECKING:
    from twinshot_server.engine_protocol import Progress

app = typer.Typer(
    help="One-step text-to-image: draw a picture, or serve pictures over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench, name="bench")


def _whole(text: str | int) -> int:
    """A whole number; typer's own parser does not name the text it refuses."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def _number(name: str, text: str | None, **more: Any) -> Any:
    return typer.Option(name, help=text, parser=_whole, metavar="<int>", **more)


def _option(field: str) -> Any:
    """The command line option of a field of Settings, with its help and its environment variable."""
    name, variable = f"--{field.replace('_', '-')}", f"TWINSHOT_{field.upper()}"
    about = Settings.model_fields[field]
    if about.annotation in (int, int | None):
        return _number(name, about.description, envvar=variable)
    return typer.Option(name, envvar=variable, help=about.description)


Checkpoint = Annotated[str, _option("checkpoint")]
Device = Annotated[str, _option("device")]
BackendOption = Annotated[Backend, _option("backend")]
PrecisionOption = Annotated[Precision, _option("precision")]
Threads = Annotated[int | None, _option("threads")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, in words.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The image file to write.")] = Path(
        "out.png"
    ),
    seed: Annotated[
        int | None, _number("--seed", "Same seed and prompt, same picture. Random if not given.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Such as 256x256; the model's own size if not given.")
    ] = None,
    steps: Annotated[int, _number("--steps", "Forward passes: more is slower.")] = 1,
    image_format: Annotated[
        ImageFormat | None, typer.Option("--format", help="What the output's name ends with, if not given.")
    ] = None,
    quality: Annotated[int | None, _number("--quality", "Of jpeg and webp, 1 to 100.")] = None,
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
) -> None:
    """Draw one picture and write it to a file."""
    with _one_sentence_errors(), _progress() as progress:
        chosen = format_for(output, image_format)
        body = GenerateBody(prompt=prompt, seed=seed, size=size, steps=steps, format=chosen, quality=quality)
        check_writable(output)
        settings = Settings(
            checkpoint=checkpoint, device=device, precision=precision, threads=threads, steps=str(steps)
        )
        from twinshot_server.one_shot import draw_to_file

        shot = draw_to_file(settings, body, chosen, output, progress)
    request = shot.request
    summary = ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in shot.milliseconds.items() if ms)
    _console().print(
        f"seed {request.seed}, {request.width}x{request.height}, {summary}", highlight=False, soft_wrap=True
    )
    typer.echo(json.dumps(shot.facts()) if as_json else str(output))


@app.command()
def serve(
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: Annotated[bool, _option("text_fp8")] = DEFAULTS.text_fp8,
    backend: BackendOption = DEFAULTS.backend,
    sizes: Annotated[str, _option("sizes")] = DEFAULTS.sizes,
    steps: Annotated[str, _option("steps")] = DEFAULTS.steps,
    threads: Threads = DEFAULTS.threads,
    replicas: Annotated[int, _option("replicas")] = DEFAULTS.replicas,
    batching: Annotated[Batching, _option("batching")] = DEFAULTS.batching,
    max_batch: Annotated[int, _option("max_batch")] = DEFAULTS.max_batch,
    engine: Annotated[str, _option("engine")] = DEFAULTS.engine,
    host: Annotated[str, _option("host")] = DEFAULTS.host,
    port: Annotated[int, _option("port")] = DEFAULTS.port,
    max_queue: Annotated[int, _option("max_queue")] = DEFAULTS.max_queue,
    max_images: Annotated[int, _option("max_images")] = DEFAULTS.max_images,
    max_body_bytes: Annotated[int, _option("max_body_bytes")] = DEFAULTS.max_body_bytes,
    body_seconds: Annotated[float, _option("body_seconds")] = DEFAULTS.body_seconds,
    deadline_ms: Annotated[int, _option("deadline_ms")] = DEFAULTS.deadline_ms,
    encoder_threads: Annotated[int | None, _option("encoder_threads")] = DEFAULTS.encoder_threads,
    engine_restarts: Annotated[int, _option("engine_restarts")] = DEFAULTS.engine_restarts,
    hang_seconds: Annotated[float, _option("hang_seconds")] = DEFAULTS.hang_seconds,
    drain_seconds: Annotated[float, _option("drain_seconds")] = DEFAULTS.drain_seconds,
    shutdown_seconds: Annotated[int, _option("shutdown_seconds")] = DEFAULTS.shutdown_seconds,
    api_keys_file: Annotated[Path | None, _option("api_keys_file")] = DEFAULTS.api_keys_file,
    cors_origins: Annotated[str, _option("cors_origins")] = DEFAULTS.cors_origins,
    vllm_metrics: Annotated[bool, _option("vllm_metrics")] = DEFAULTS.vllm_metrics,
    log_level: Annotated[LogLevel, _option("log_level")] = DEFAULTS.log_level,
    log_format: Annotated[LogFormat, _option("log_format")] = DEFAULTS.log_format,
) -> None:
    """Serve pictures over HTTP until SIGINT (Ctrl-C) or SIGTERM.

    API keys come from --api-keys-file, or from TWINSHOT_API_KEYS and TWINSHOT_ADMIN_KEY.
    """
    given = dict(locals())
    with _one_sentence_errors():
        settings = Settings(**given)
        from twinshot_server.serve import run_server

        run_server(settings)


@app.command()
def info(
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
) -> None:
    """Load the checkpoint and tell what it can do, and what runs it."""
    with _one_sentence_errors(), _progress() as progress:
        settings = Settings(checkpoint=checkpoint, device=device, precision=precision, threads=threads)
        from twinshot_server.report import as_text, collect

        facts = collect(settings, progress)
    typer.echo(json.dumps(facts, default=str) if as_json else as_text(facts))


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """One-step text-to-image: draw a picture, or serve pictures over HTTP."""
    if version:
        from twinshot_server import __version__

        typer.echo(__version__)
        raise typer.Exit


def _console() -> Console:
    return Console(stderr=True)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Tells on stderr what is going on: a moving line on a terminal, nothing elsewhere."""
    with _console().status("starting") as status:
        yield lambda stage, fraction: status.update(f"{stage} {fraction:.0%}" if fraction else stage)


@contextmanager
def _one_sentence_errors() -> Iterator[None]:
    """Turn what the user can mend into a sentence on stderr and exit code 2."""
    try:
        yield
    except ValidationError as error:
        _fail(describe(error.errors(), GenerateBody)[0])
    except (CheckpointError, InvalidRequestError, ListenError, OutputError, SettingsError) as error:
        _fail(str(error))


def _fail(sentence: str) -> None:
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(2)
