"""The command line: `twinshot` and its commands, each in a module under `commands/`.

Results go to stdout, progress and errors to stderr; how commands end is in `commands.exits`. What needs torch
or FastAPI is imported inside the commands, so that help and usage errors come at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from twinshot_server.bench_cli import app as bench
from twinshot_server.commands.build import build
from twinshot_server.commands.distill import distill
from twinshot_server.commands.doctor import doctor
from twinshot_server.commands.evaluate import app as evaluate
from twinshot_server.commands.exits import EXIT_CODES
from twinshot_server.commands.generate import generate
from twinshot_server.commands.info import info
from twinshot_server.commands.inspect import inspect
from twinshot_server.commands.serve import serve

app = typer.Typer(
    help="One-step text-to-image: draw a picture, or serve pictures over HTTP.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # Gives an environment variable to every option without one of its own: TWINSHOT_GENERATE_SEED.
    context_settings={"auto_envvar_prefix": "TWINSHOT"},
)
for command in (serve, generate, inspect, info, doctor, build, distill):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(evaluate, name="evaluate")


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """One-step text-to-image: draw a picture, or serve pictures over HTTP."""
    if version:
        from twinshot_server import __version__

        typer.echo(__version__)
        raise typer.Exit
