"""`twinshot info`: what is installed, and what the checkpoint can do once it is loaded."""

from __future__ import annotations

import json

import typer

from twinshot_server.commands.exits import one_sentence_errors
from twinshot_server.commands.options import (
    Adapters,
    AsJson,
    Base,
    Checkpoint,
    Device,
    MemoryOption,
    PrecisionOption,
    TextFp8,
    Threads,
)
from twinshot_server.commands.progress import Bar
from twinshot_server.settings import DEFAULTS, Settings


def info(
    checkpoint: Checkpoint = DEFAULTS.checkpoint,
    base: Base = DEFAULTS.base,
    adapter: Adapters = None,
    device: Device = DEFAULTS.device,
    precision: PrecisionOption = DEFAULTS.precision,
    text_fp8: TextFp8 = DEFAULTS.text_fp8,
    memory: MemoryOption = DEFAULTS.memory,
    threads: Threads = DEFAULTS.threads,
    as_json: AsJson = False,
) -> None:
    """Load the checkpoint and tell what it can do, and what runs it."""
    with one_sentence_errors(), Bar() as bar:
        settings = Settings(
            checkpoint=checkpoint,
            base=base,
            adapter=tuple(adapter or ()),
            device=device,
            precision=precision,
            text_fp8=text_fp8,
            memory=memory,
            threads=threads,
        )
        bar("importing torch", 0.0)
        from twinshot_server.report import as_text, collect

        facts = collect(settings, bar)
    typer.echo(json.dumps(facts, default=str) if as_json else as_text(facts))
