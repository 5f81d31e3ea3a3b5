"""`twinshot generate`: pictures in files, and on the terminal where it can show them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from twinshot_server.commands.exits import UsageError, one_sentence_errors
from twinshot_server.commands.options import (
    Adapters,
    AsJson,
    BackendOption,
    Base,
    Checkpoint,
    Device,
    Engines,
    Fallback,
    MemoryOption,
    PrecisionOption,
    TextFp8,
    Threads,
    number,
)
from twinshot_server.commands.progress import Bar
from twinshot_server.images import ImageFormat
from twinshot_server.saving import check_writable, format_for, numbered
from twinshot_server.schemas import GenerateBody
from twinshot_server.settings import DEFAULTS, Settings
from twinshot_server.terminal_pictures import Show, show_picture
from twinshot_server.validation import describe

if TYPE_CHECKING:
    from twinshot_server.one_shot import Pixels, Shot


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is done with the pictures."""

    output: Path
    image_format: ImageFormat
    quality: int | None
    columns: int | None
    """Of the sheet that all of them go on, or None for a file each."""
    show: Show
    as_json: bool


def _schedule(text: str) -> str:
    """A count of steps that may name its schedule; loading says if it fits."""
    if not re.fullmatch(r"((few|any|multi):)?[0-9]+", text):
        raise typer.BadParameter(f"{text!r} is not a whole number, nor such as any:4 or multi:30")
    return text


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to draw, in words; one or more.")] = None,
    file: Annotated[
        typer.FileText | None,
        typer.Option(
            "--file",
            "-f",
            encoding="utf-8",
            metavar="<path>",
            help="More prompts, one a line; - reads stdin.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The image file to write; several become out-1.png, ...")
    ] = Path("out.png"),
    count: Annotated[
        int,
        number(
            "--number",
            "-n",
            envvar="TWINSHOT_GENERATE_NUMBER",
            text="Pictures of each prompt; their seeds count up.",
        ),
    ] = 1,
    grid: Annotated[bool, typer.Option("--grid", help="Put all pictures on one sheet.")] = False,
    columns: Annotated[
        int | None, number("--columns", text="Pictures in a row of the sheet; if not given, as fits.")
    ] = None,
    seed: Annotated[
        int | None, number("--seed", text="Same seed and prompt, same picture. Random if not given.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Such as 256x256; the model's own size if not given.")
    ] = None,
    steps: Annotated[
        str,
        typer.Option(
            parser=_schedule,
            metavar="<steps>",
            help="Forward passes: more is slower. any:4 and multi:30 name their schedules.",
        ),
    ] = "1",
    guidance: Annotated[
        float,
        typer.Option(help="How strongly each of 16 or more steps follows the prompt, for twice the time."),
    ] = 1.0,
    image_format: Annotated[
        ImageFormat | None,
        typer.Option(
            "--format",
            envvar="TWINSHOT_GENERATE_FORMAT",
            help="What the output's name ends with, if not given.",
        ),
    ] = None,
    quality: Annotated[int | None, number("--quality", text="Of jpeg and webp, 1 to 100.")] = None,
    show: Annotated[
        Show,
        typer.Option(help="How the terminal shows pictures; auto finds out, and does nothing in a pipe."),
    ] = Show.AUTO,
    open_it: Annotated[
        bool,
        typer.Option(
            "--open", envvar="TWINSHOT_GENERATE_OPEN", help="Open the file in the desktop's viewer."
        ),
    ] = False,
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    base: Base = DEFAULTS.base,
    adapter: Adapters = None,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    memory: MemoryOption = DEFAULTS.memory,
    backend: BackendOption = DEFAULTS.backend,
    engines: Engines = DEFAULTS.engines,
    fallback: Fallback = DEFAULTS.fallback,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
) -> None:
    """Draw pictures and write them to files."""
    with one_sentence_errors(), Bar() as bar:
        texts = [*(prompts or []), *_read_prompts(file)]
        chosen = format_for(output, image_format)
        passes = int(steps.rpartition(":")[2])
        fields = {"n": count, "seed": seed, "size": size, "steps": passes, "format": chosen}
        bodies = list(_bodies(texts, {**fields, "guidance": guidance, "quality": quality}))
        total = count * len(bodies)
        if open_it and total > 1 and not grid:
            raise UsageError(f"--open shows one file, not {total}; add --grid to have all pictures in one")
        row = _columns(len(bodies), count, columns) if grid else None
        wanted = Wanted(output, chosen, quality, row, show, as_json)
        for path in numbered(output, 1 if grid else total):
            check_writable(path)
        settings = Settings(
            checkpoint=checkpoint,
            base=base,
            adapter=tuple(adapter or ()),
            device=device,
            precision=precision,
            text_fp8=text_fp8,
            memory=memory,
            backend=backend,
            engines=engines,
            fallback=fallback,
            threads=threads,
            sizes=size or "",
            steps=steps,
        )
        _draw(settings, bodies, wanted, bar)
    if open_it and typer.launch(str(output)) != 0:
        typer.echo(f"No viewer could be started here; the picture is {output}.", err=True)


def _read_prompts(file: typer.FileText | None) -> list[str]:
    """The lines of a file that hold anything. Raises UsageError."""
    if file is None:
        return []
    try:
        return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts from {file.name!r}: {error}") from None


def _bodies(prompts: Sequence[str], fields: Mapping[str, object]) -> Iterator[GenerateBody]:
    """A checked request for each prompt. Raises UsageError or ValidationError."""
    if not prompts:
        raise UsageError("there is no prompt; say in words what to draw, or name a file with --file")
    for place, prompt in enumerate(prompts, 1):
        try:
            yield GenerateBody.model_validate({"prompt": prompt, **fields})
        except ValidationError as error:
            if len(prompts) == 1:
                raise
            raise UsageError(f"prompt {place} of {len(prompts)}: {describe(error.errors())[0]}") from None


def _columns(prompts: int, each: int, asked: int | None) -> int:
    """A row for each prompt, or as square as can be if there is one prompt or one picture of each."""
    if asked is not None and asked < 1:
        raise UsageError(f"--columns must be at least 1, not {asked}")
    fitting = each if prompts > 1 and each > 1 else math.ceil(math.sqrt(prompts * each))
    return min(asked or fitting, prompts * each)


def _draw(settings: Settings, bodies: Sequence[GenerateBody], wanted: Wanted, bar: Bar) -> None:
    bar("importing torch", 0.0)
    from twinshot_server.one_shot import arrange, draw

    shots = draw(settings, bodies, bar)
    if wanted.columns is None:
        paths = numbered(wanted.output, sum(body.n for body in bodies))
        for shot, path in zip(shots, paths, strict=True):
            _tell([shot.write(path, wanted.image_format, wanted.quality)], shot.pixels, wanted, bar)
        return
    drawn = list(shots)
    sheet = replace(drawn[0], pixels=arrange(drawn, wanted.columns))
    sheet.write(wanted.output, wanted.image_format, wanted.quality)
    _tell([replace(shot, output=wanted.output) for shot in drawn], sheet.pixels, wanted, bar)


def _tell(shots: Sequence[Shot], pixels: Pixels, wanted: Wanted, bar: Bar) -> None:
    """Say what was drawn on stderr, and where it is on stdout."""
    bar.hide()
    for shot in shots:
        typer.echo(_summary(shot), err=True)
        if wanted.as_json:
            typer.echo(json.dumps(shot.facts(), ensure_ascii=False))
    if not wanted.as_json:
        typer.echo(str(shots[0].output))
        show_picture(pixels, wanted.show)


def _summary(shot: Shot) -> str:
    request = shot.request
    times = ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in shot.milliseconds.items() if ms)
    told = f"seed {request.seed}, {request.width}x{request.height}, {times}"
    strange = [
        f"{each.word} ({each.nearest} instead)" if each.nearest else each.word for each in shot.unknown
    ]
    return f"{told}; never taught: {', '.join(strange)}" if strange else told
