"""`twinshot build`: engines of TensorRT from a checkpoint, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinshot_server.commands.exits import UsageError, one_sentence_errors
from twinshot_server.commands.options import AsJson, Checkpoint, option
from twinshot_server.commands.progress import Bar
from twinshot_server.settings import DEFAULTS, Settings

if TYPE_CHECKING:
    from twinshot_engine.tensorrt.manifest import Manifest

_EXPORT_PACKAGES = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")


class EnginePrecision(StrEnum):
    """Number formats of engines."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"


class LibraryName(StrEnum):
    """What builds and runs engines."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


def build(
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the engines.")] = Path("engines"),
    sizes: Annotated[str, option("sizes")] = DEFAULTS.sizes,
    batch: Annotated[
        str, typer.Option(help="Pictures that may share a pass, comma-separated, 1 among them.")
    ] = "1",
    precision: Annotated[
        EnginePrecision, typer.Option(help="Number format of weights and activations.")
    ] = EnginePrecision.BF16,
    target: Annotated[
        str, typer.Option(help="GPUs, as sm_89,sm_120; if not given, all that one engine can be for.")
    ] = "",
    library: Annotated[LibraryName, typer.Option(help="auto is what is installed.")] = LibraryName.AUTO,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare what is exported with torch, in onnxruntime.")
    ] = True,
    keep_onnx: Annotated[
        bool, typer.Option("--keep-onnx", help="Keep the exported ONNX files, for builds for other GPUs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint and build engines of TensorRT from it; run again, it goes on where it stopped."""
    with one_sentence_errors(), Bar() as bar:
        settings = Settings(checkpoint=checkpoint, sizes=sizes)
        bar("importing torch", 0.0)
        try:
            from twinshot_engine.tensorrt.build import BuildConfig
            from twinshot_engine.tensorrt.build import build as run
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        order = BuildConfig(
            checkpoint,
            output.expanduser(),
            sizes=settings.listed_sizes,
            batch_sizes=tuple(map(int, _listed(batch, str.isdecimal, "1,2,4"))),
            precision=precision.value,
            targets=_listed(target, lambda each: each.startswith("sm_"), "sm_89,sm_120"),
            library=None if library is LibraryName.AUTO else library.value.replace("-", "_"),
            check=check,
            keep_onnx=keep_onnx,
        )
        manifest = run(order, bar)
    typer.echo(json.dumps(asdict(manifest)) if as_json else describe(manifest))


def inspect_engines(folder: Path, *, as_json: bool) -> None:
    """Verify a folder of engines, file by file, and print what they are."""
    from twinshot_engine.tensorrt.manifest import read_manifest, verify_engine

    with one_sentence_errors():
        manifest = read_manifest(folder)
        for engine in manifest.engines:
            verify_engine(folder, engine)
    typer.echo(json.dumps(asdict(manifest)) if as_json else describe(manifest))


def describe(manifest: Manifest) -> str:
    """A folder of engines in lines for people."""
    targets, batches = ", ".join(manifest.targets), ", ".join(map(str, manifest.batch_sizes))
    tokens = f"{manifest.tokens[0]} to {manifest.tokens[-1]}"
    lines = [
        f"{manifest.library} {manifest.library_version}, {manifest.precision}, for {targets}",
        f"{manifest.family} {manifest.checkpoint}, batches of {batches}, prompts of {tokens} tokens",
    ]
    for engine in manifest.engines:
        ports = ", ".join(f"{port.name} {list(port.shape)}" for port in (*engine.inputs, *engine.outputs))
        lines.append(
            f"{engine.file}  {engine.bytes / 1e6:.1f} MB  exported in {engine.export_seconds:.0f} s, "
            f"built in {engine.build_seconds:.0f} s  {ports}"
        )
    return "\n".join(lines)


def _listed(text: str, accepts: Callable[[str], bool], example: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if wrong := [part for part in parts if not accepts(part)]:
        raise UsageError(f"{wrong[0]!r} is not understood; accepted: a list such as {example}.")
    return parts


def _missing(error: ModuleNotFoundError) -> Exception:
    if error.name not in _EXPORT_PACKAGES:
        return error
    return UsageError(f"{error.name} is not installed: pip install 'twinshot-server[export]' installs it.")
