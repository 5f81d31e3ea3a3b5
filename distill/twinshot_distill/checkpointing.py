"""States of a run on disk: written whole or not at all, read back to the bit.

    OUT/state/step-00001000/rank-0.safetensors, ...    every process's own part
    OUT/state/step-00001000/state.json                 step, seconds, numbers, and the run's settings

A folder appears under its name only when all of it is written, so whatever is found can be trusted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twinshot_distill.errors import TrainingError
from twinshot_distill.processes import Processes
from twinshot_distill.tensor_files import save_tensors

FREE_TO_CHANGE = ("length", "saving", "reporting")
"""Tables of a run's settings that may differ when it is resumed."""

_BEFORE = {"deterministic": False}
"""What runs did before a setting existed, whose states lack it."""


@dataclass(frozen=True, slots=True)
class State:
    """A run at the end of a step."""

    step: int
    seconds: float
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Keeper:
    """Saves and finds the states of one run.

    Attributes:
        folder: of all states of the run; it may not exist yet.
        settings: the run's, as JSON types; a state of other settings is refused.
        processes: who trains.
        keep: how many states stay.
    """

    folder: Path
    settings: Mapping[str, Any]
    processes: Processes = field(default_factory=Processes)
    keep: int = 2

    def save(self, state: State) -> None:
        """Write a state, then remove the oldest ones.

        Raises:
            TrainingError: the disk does not take it; older states are untouched.
        """
        target = self.folder / f"step-{state.step:08d}"
        partial = target.with_suffix(".partial")
        failure = self._write(partial, state)
        failures = [words for words in self.processes.gather(failure) if words]
        if not failures and self.processes.first:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for old in self._found()[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        elif self.processes.first:
            shutil.rmtree(partial, ignore_errors=True)
        self.processes.wait()
        if failures:
            raise TrainingError(f"'{target}' cannot be saved: {failures[0]}; {self.told}.")

    def latest(self) -> State | None:
        """Read the newest state, or None where there is none.

        Raises:
            TrainingError: it belongs to other settings or another number of processes, or is damaged.
        """
        found = self._found()
        if not found:
            return None
        try:
            facts = json.loads((found[-1] / "state.json").read_text())
            self._compare(facts["settings"], found[-1])
            if facts["processes"] != self.processes.count:
                raise TrainingError(
                    f"'{found[-1]}' was saved by {facts['processes']} processes and cannot be resumed by "
                    f"{self.processes.count}: start as many."
                )
            tensors = load_file(found[-1] / f"rank-{self.processes.rank}.safetensors")
            return State(facts["step"], facts["seconds"], tensors, facts["numbers"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise TrainingError(
                f"'{found[-1]}' is damaged ({error}): remove it to resume before it."
            ) from error

    def newest(self) -> int | None:
        """The step of the newest state, or None where there is none."""
        found = self._found()
        return int(found[-1].name[5:]) if found else None

    @property
    def told(self) -> str:
        """What there is to resume from, in words."""
        newest = self.newest()
        if newest is None:
            return f"'{self.folder}' holds no state"
        return f"the newest state in '{self.folder}' is of step {newest}"

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.name[5:].isdigit())

    def _write(self, partial: Path, state: State) -> str:
        try:
            partial.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
            save_tensors(tensors, partial / f"rank-{self.processes.rank}.safetensors")
            if self.processes.first:
                facts = {
                    "step": state.step,
                    "seconds": state.seconds,
                    "numbers": dict(state.numbers),
                    "processes": self.processes.count,
                    "settings": self.settings,
                }
                (partial / "state.json").write_text(json.dumps(facts, indent=1))
        except OSError as error:
            return str(error)
        return ""

    def _compare(self, saved: Mapping[str, Any], found: Path) -> None:
        before, now = _flat(saved), _flat(self.settings)
        before = {name: value for name, value in _BEFORE.items() if name in now} | before
        changed = sorted(
            name
            for name in before.keys() | now.keys()
            if name.split(".")[0] not in FREE_TO_CHANGE and before.get(name) != now.get(name)
        )
        if changed:
            name, more = changed[0], f" and {len(changed) - 1} more differ" if changed[1:] else ""
            told = f"{name} = {json.dumps(before.get(name))}, not {json.dumps(now.get(name))}{more}"
            raise TrainingError(
                f"'{found}' was trained with {told}: resume with the same settings or use another folder. "
                f"Only {', '.join(FREE_TO_CHANGE)} may change."
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
