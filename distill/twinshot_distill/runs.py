"""Runs from their files: which trainer a file is for, checked, then started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinshot_distill.errors import TrainingError
from twinshot_distill.miniature.configuration import Run, filled
from twinshot_distill.runfile import RunFile, find_run, read_run_file, read_table

MINIATURE = "miniature"
"""The value of `trainer` in a file for the miniature's own stages."""


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """A run whose file is sound: of a checkpoint, or of the miniature from nothing."""

    settings: RunFile | Run

    def as_json(self) -> dict[str, Any]:
        """All settings, defaults included."""
        if isinstance(self.settings, RunFile):
            return self.settings.as_json()
        return {"trainer": MINIATURE} | asdict(self.settings)


def check_run(reference: str, changes: Mapping[str, Any]) -> CheckedRun:
    """Read a run file by path or name; see :func:`~twinshot_distill.runfile.read_run_file`.

    Raises:
        TrainingError: it cannot be read, or a setting is unknown or wrong.
    """
    path = find_run(reference)
    table = read_table(path)
    if table.pop("trainer", None) != MINIATURE:
        return CheckedRun(read_run_file(path, changes))
    try:
        run = filled(Run(), table)
        for name, value in changes.items():
            run = filled(run, _nested(name.split("."), value))
        return CheckedRun(run)
    except ValueError as error:
        raise TrainingError(f"'{path}': {error}.") from error


def start_run(run: CheckedRun, out: Path, device: str, *, prepare_only: bool = False) -> dict[str, str]:
    """Train, and tell where the results are.

    Args:
        run: what.
        out: the run's folder.
        device: "cuda", "cpu", or "auto" for a GPU if there is one.
        prepare_only: only fill the cache of latents and embeddings.

    Returns:
        The folders that the run has left, by what is in them: `checkpoint`, `adapter`, `cache`.

    Raises:
        TrainingError: something that the message tells how to mend.
        CheckpointError: the checkpoint cannot be read.
    """
    import torch

    if device not in ("auto", "cuda", "cpu"):
        raise TrainingError(f"device {device!r} is not 'auto', 'cuda' or 'cpu'.")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device 'cuda': torch finds no GPU here; 'cpu' and 'auto' need none.")
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(run.settings, RunFile):
        from twinshot_distill.distillation import distill

        distill(run.settings, out, chosen, prepare_only=prepare_only)
        left = {"cache": run.settings.data.cache or out / "cache"}
        left |= {name: out / name for name in ("adapter", "checkpoint") if not prepare_only}
        return {name: str(path) for name, path in left.items() if path.is_dir()}
    if prepare_only:
        raise TrainingError("The miniature draws its data while it trains: there is nothing to prepare.")
    from twinshot_distill.miniature.train import train_miniature

    train_miniature(out, run.settings, torch.device(chosen))
    return {"checkpoint": str(out / "checkpoint")}


def _nested(names: list[str], value: Any) -> dict[str, Any]:
    for name in reversed(names):
        value = {name: value}
    table: dict[str, Any] = value
    return table
