"""What is going on, as a bar on stderr: on a terminal alone, and gone when the work is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)


class Bar:
    """A progress bar that is called with the name of the current stage and its fraction, 0 to 1."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        # rich would send prints to its own console, which is stderr, and a result in a pipe would be lost.
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=1.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, fraction: float) -> None:
        """Show another stage, or more of it; at 0 the bar only moves, as nobody knows for how long."""
        self._progress.update(
            self._task, description=stage, completed=fraction, total=1.0 if fraction else None
        )
        self._progress.start()

    def hide(self) -> None:
        """Take the bar off the screen, so that something else can be written, until it is called again."""
        self._progress.stop()

    @contextmanager
    def above_logs(self) -> Iterator[None]:
        """Hide the bar whenever a line is logged."""

        def step_aside(_record: logging.LogRecord) -> bool:
            self.hide()
            return True

        handlers = list(logging.getLogger().handlers)
        for handler in handlers:
            handler.addFilter(step_aside)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(step_aside)
