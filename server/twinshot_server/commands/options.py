"""The options that several commands share. Each is also an environment variable."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from twinshot_server.settings import Backend, Memory, Precision, Settings


def whole(text: str | int) -> int:
    """A whole number; typer's own parser does not name the text it refuses."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def number(*names: str, text: str | None, **more: Any) -> Any:
    """An option that takes a whole number, described by `text`."""
    return typer.Option(*names, help=text, parser=whole, metavar="<int>", **more)


def option(field: str) -> Any:
    """The command line option of a field of Settings, with its help and its environment variable."""
    name, variable = f"--{field.replace('_', '-')}", f"TWINSHOT_{field.upper()}"
    about = Settings.model_fields[field]
    if about.annotation in (int, int | None):
        return number(name, text=about.description, envvar=variable)
    return typer.Option(name, envvar=variable, help=about.description)


Checkpoint = Annotated[str, option("checkpoint")]
Base = Annotated[str | None, option("base")]
Adapters = Annotated[list[str] | None, option("adapter")]
MemoryOption = Annotated[Memory, option("memory")]
Device = Annotated[str, option("device")]
BackendOption = Annotated[Backend, option("backend")]
Engines = Annotated[str | None, option("engines")]
Fallback = Annotated[bool, option("fallback")]
PrecisionOption = Annotated[Precision, option("precision")]
TextFp8 = Annotated[bool, option("text_fp8")]
Threads = Annotated[int | None, option("threads")]
AsJson = Annotated[
    bool, typer.Option("--json", envvar="TWINSHOT_JSON", help="Print results as JSON, one object a line.")
]
