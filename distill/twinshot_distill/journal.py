"""How a run goes: one line now and then, every figure in a file, and a page that shows both live.

OUT/<name>.jsonl     one object a report: step, figures; null stands for one that is not finite
OUT/progress.html    curves and samples; open it in a browser, it renews itself
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinshot_distill.live_page import write_page
from twinshot_distill.report import say

Sampler = Callable[[Path], None]
"""Draws pictures of the model as it is into one WebP file."""


@dataclass
class Journal:
    """Tells how a run goes.

    Attributes:
        folder: for the files; it exists. None writes no files.
        name: of the run, or of its stage.
        rows: of data a step, for the throughput.
        every: seconds between reports.
        sampler: draws samples, every `sample_every` seconds (0: never).
        speaks: whether this process is the one that tells.
        prompts: of the samples.
    """

    folder: Path | None
    name: str
    rows: int
    every: float = 15.0
    sampler: Sampler | None = None
    sample_every: float = 0.0
    speaks: bool = True
    prompts: Sequence[str] = ()
    _noted: dict[str, Tensor | float] = field(default_factory=dict)
    _history: list[dict[str, Any]] = field(default_factory=list)
    _reported: float = field(default_factory=time.monotonic)
    _sampled: float = field(default_factory=time.monotonic)
    _steps: int = 0
    _at: tuple[int, float, float, int] | None = None

    def __post_init__(self) -> None:
        # The others would read what the one that tells is writing.
        if self.speaks and self.folder is not None and self._file.is_file():
            lines = self._file.read_text(errors="replace").splitlines()
            self._history = [told for line in lines if (told := _told(line))]

    @property
    def _file(self) -> Path:
        return Path(self.folder or ".") / f"{self.name}.jsonl"

    def note(self, terms: Mapping[str, Tensor], norm: Tensor, rate: float) -> None:
        """Remember the figures of a step; nothing is read from the device yet."""
        self._noted = {**terms, "gradient": norm, "learning rate": rate}
        self._steps += 1

    def report(self, step: int, progress: float, remaining: float, skipped: int) -> None:
        """Tell, if it is time to."""
        now, self._at = time.monotonic(), (step, progress, remaining, skipped)
        if now - self._reported < self.every and progress < 1:
            return
        figures = {name: float(value) for name, value in self._noted.items()}
        throughput = self._steps * self.rows / max(now - self._reported, 1e-9)
        self._reported, self._steps = now, 0
        if not self.speaks:
            return
        values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        say(
            f"{self.name} step {step}  {values}  {throughput:.0f} rows/s  {_clock(remaining)} left{_memory()}"
        )
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._history.append({"step": step, **known, "rows/s": throughput, "skipped": skipped})
        self._write()

    def rewind(self, step: int) -> None:
        """Forget what was told after a step, to which the run goes back."""
        self._history = [told for told in self._history if told["step"] <= step]
        if self.folder is None or not self.speaks or not self._file.is_file():
            return
        partial = self._file.with_suffix(".partial")
        try:
            partial.write_text("".join(json.dumps(told) + "\n" for told in self._history))
            partial.replace(self._file)
        except OSError as error:
            say(f"{self.name}: the journal cannot be written ({error}); training goes on")

    def finish(self, step: int, skipped: int) -> None:
        """Tell that the run is over."""
        self._at = step, 1.0, 0.0, skipped
        if self.speaks:
            say(f"{self.name}: {step} steps, {step * self.rows:,} rows, {skipped} skipped")

    def close(self) -> None:
        """Leave a page that says how the run ended."""
        if self.speaks and self._history:
            with suppress(OSError):
                self._show(ended=True)

    def _show(self, *, ended: bool = False) -> None:
        if self.folder is None or self._at is None:
            return
        step, progress, remaining, skipped = self._at
        left = f"{_clock(remaining)} left" if not ended else "finished" if progress >= 1 else "stopped"
        told = f"step {step}, {100 * progress:.1f} % done, {left}"
        told += f", {skipped} skipped" if skipped else ""
        write_page(self.folder, self.name, self._history, progress, told, self.prompts, ended=ended)

    def _write(self) -> None:
        if self.folder is None:
            return
        try:
            with self._file.open("a") as file:
                file.write(json.dumps(self._history[-1]) + "\n")
            self._sample()
            self._show()
        except OSError as error:
            say(f"{self.name}: the journal cannot be written ({error}); training goes on")

    def _sample(self) -> None:
        due = self.sample_every and time.monotonic() - self._sampled >= self.sample_every
        if self.folder is None or self.sampler is None or not due:
            return
        samples = self.folder / "samples"
        samples.mkdir(exist_ok=True)
        self.sampler(samples / f"{self.name}-{self._history[-1]['step']:08d}.webp")
        self._sampled = time.monotonic()


def _told(line: str) -> dict[str, Any] | None:
    """A line of the file, or None for one cut off by a full disk or the process's end."""
    try:
        told = json.loads(line, parse_constant=lambda _name: None)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("step"), int) else None


def _clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f"  peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
