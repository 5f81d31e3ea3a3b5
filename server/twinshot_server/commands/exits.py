"""How a command ends: the exit codes, and one sentence on stderr for what its user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn

import typer
from pydantic import ValidationError

from twinshot_distill.errors import TrainingError
from twinshot_engine.errors import CheckpointError, InvalidRequestError
from twinshot_server.listening import ListenError
from twinshot_server.saving import OutputError
from twinshot_server.schemas import GenerateBody
from twinshot_server.settings import SettingsError
from twinshot_server.validation import describe


class ExitCode(IntEnum):
    """What the program's exit code says."""

    DONE = 0
    FAILED = 1
    """Something broke, or `doctor` found a fault, or `inspect` a checkpoint that cannot be served."""
    USAGE = 2
    """What was asked for cannot be done: an option, a prompt, a checkpoint, a file; stderr says why."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXIT_CODES = (
    "Exit codes: 0 done; 1 something broke or a check failed; 2 what was asked for cannot be done, and "
    "stderr says why; 130 interrupted. Every option is also an environment variable. Results go to stdout, "
    "progress and errors to stderr."
)
"""The last paragraph of `twinshot --help`."""


class UsageError(Exception):
    """What was asked for cannot be done; the message says why and what is accepted."""


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn what the user can mend into a sentence on stderr and exit code 2."""
    try:
        yield
    except ValidationError as error:
        _fail(describe(error.errors(), GenerateBody)[0])
    except (
        CheckpointError,
        InvalidRequestError,
        ListenError,
        OutputError,
        SettingsError,
        TrainingError,
        UsageError,
    ) as error:
        _fail(str(error))


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(ExitCode.USAGE)
