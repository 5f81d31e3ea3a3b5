"""`twinshot doctor`: checks machine and installation, and says what to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from twinshot_server.commands.exits import ExitCode, one_sentence_errors
from twinshot_server.commands.inspect import stay_offline
from twinshot_server.commands.options import AsJson, Checkpoint, Device, PrecisionOption, TextFp8
from twinshot_server.commands.progress import Bar
from twinshot_server.settings import DEFAULTS, Settings

if TYPE_CHECKING:
    from twinshot_server.checkup import Finding

_MARKS = {"ok": ("ok   ", "green"), "note": ("note ", "yellow"), "fault": ("FAULT", "bold red")}


def doctor(
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    start: Annotated[
        bool, typer.Option("--start", help="Start an engine too, and tell how long each stage takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check GPU, driver, kernels, memory, model files and caches, and say what to do.

    Nothing is downloaded. Ends with 1 if anything is at fault.
    """
    stay_offline()
    findings = []
    with one_sentence_errors(), Bar() as bar:
        bar("importing torch", 0.0)
        settings = Settings(checkpoint=checkpoint, device=device, precision=precision, text_fp8=text_fp8)
        from twinshot_server.checkup import examine

        for finding in examine(settings, bar, start=start):
            findings.append(finding)
            if not as_json:
                bar.hide()
                _print(finding)
    faults = sum(finding.status == "fault" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"faults": faults, "findings": [asdict(finding) for finding in findings]}))
    else:
        typer.echo(f"{faults} faults." if faults != 1 else "1 fault.")
    if faults:
        raise typer.Exit(ExitCode.FAILED)


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.status]
    console = Console(highlight=False)
    console.print(Text.assemble((mark, style), f"  {finding.check:<12}  {finding.found}"), soft_wrap=True)
    if finding.advice:
        console.print(Text(f"{'':<21}{finding.advice}", style="italic"), soft_wrap=True)
