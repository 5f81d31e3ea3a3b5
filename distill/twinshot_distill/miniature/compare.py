"""The paper's comparison on the miniature: four methods from one flow model, as long each, and their scores.

    python -m twinshot_distill.miniature.compare out/miniature --seconds 240 --methods all
    python -m twinshot_distill.miniature.compare out/try --rehearsal  # of a rehearsal of miniature.train

The folder is a run of `miniature.train` that has finished its flow stage. Results are in its `compare`:
a folder a method with its checkpoint, what training it took and its scores, and of the methods asked for
`comparison.json`, `comparison.md`, the curves and a sheet of pictures. What is done is not done again; a
method that was interrupted goes on from its last state.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

from twinshot_distill.errors import TrainingError
from twinshot_distill.miniature.autoencoder import new_autoencoder
from twinshot_distill.miniature.configuration import Run, changed, read_run, rehearsal
from twinshot_distill.miniature.denoiser import Denoiser
from twinshot_distill.miniature.export import export
from twinshot_distill.miniature.methods import COST, METHODS, Comparison, find_methods
from twinshot_distill.miniature.stages import forget_states, train_stage
from twinshot_distill.miniature.start import start_from
from twinshot_distill.miniature.train import Trainer, frozen
from twinshot_distill.report import say
from twinshot_distill.world.scenes import Split
from twinshot_engine.schedule import Steps

_SECONDS, _STEPS, _COUNT = 240.0, (1, 2, 4, 8, 30), 100
_REHEARSED_STEPS = (1, 2)


class Contest:
    """The methods' training: one start and one pool of latents, made only if something is left to train."""

    def __init__(self, start: Path, out: Path, settings: Comparison, device: torch.device) -> None:
        self._out, self._settings, self._device = out, settings, device
        self._run = replace(settings.run, start=str(start))
        self._trainer = Trainer(out, self._run, device)
        autoencoder, flow = new_autoencoder(), Denoiser()
        start_from(start, autoencoder, flow, self._trainer.tokenizer)
        self._autoencoder, self._flow = frozen(autoencoder, device), flow.to(device)
        self._pool = self._trainer.pool(self._autoencoder)
        self._first = self._pool.position

    def train(self, name: str) -> None:
        """Train one method, export it and write down what that took.

        Raises:
            TrainingError: it diverged, or was begun with other settings.
        """
        folder, settings = self._out / name, self._settings
        folder.mkdir(parents=True, exist_ok=True)
        self._pool.refill(self._first)
        torch.manual_seed(settings.seed)
        before = _restart_memory(self._device)
        method = METHODS[name](self._flow, self._pool, self._trainer.tokenizer, settings)
        if settings.compiled:
            method.compile()
        self._trainer.say(f"{name}: {method.settings.seconds:.0f} s")
        loop = train_stage(name, method.trainee, method.trained, method.settings, self._run, folder)
        export(folder / "checkpoint", self._autoencoder, method.result)
        row = _facts(name, self._settings, self._device) | method.sizes()
        row |= _speed(loop.step, loop.seconds, loop.seconds_a_step, method.settings.batch)
        row |= {"passes_a_row": round(method.work, 2), "peak_mib": _peak(self._device, before)}
        _write_json(folder / COST, row)
        forget_states(name, folder)


def train_methods(
    start: Path, out: Path, names: Sequence[str], settings: Comparison, device: torch.device
) -> None:
    """Train what is not trained yet; see :class:`Contest`.

    Raises:
        TrainingError: there is no start, or a method cannot be trained.
    """
    if not start.is_dir():
        raise TrainingError(
            f"'{start}' is no folder: give a run of miniature.train, or with --start an export."
        )
    left = [name for name in names if not (out / name / COST).is_file()]
    if not left:
        return
    contest = Contest(start, out, settings, device)
    for name in left:
        contest.train(name)


def _write_json(path: Path, content: Any) -> None:
    """Write in one move: whatever is found later is whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def _facts(name: str, settings: Comparison, device: torch.device) -> dict[str, Any]:
    return {
        "benchmark": "training-cost",
        "method": name,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "versions": {"torch": torch.__version__},
        "date": datetime.now(UTC).date().isoformat(),
        "seed": settings.seed,
    }


def _speed(steps: int, seconds: float, seconds_a_step: float, batch: int) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "training_steps": steps,
        "batch": batch,
        "ms_a_step": round(1000 * seconds_a_step, 2),
        "images_per_s": round(batch / seconds_a_step, 1),
    }


def _restart_memory(device: torch.device) -> int:
    """Bytes that all methods share: start, autoencoder, pool."""
    gc.collect()  # networks of the method before may still hold each other
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, before: int) -> int | None:
    """MiB at most that a method took beyond what all share; None where nobody counts."""
    if device.type != "cuda":
        return None
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20)


def main(
    folder: Annotated[Path, typer.Argument(help="A run of miniature.train with its flow stage finished.")],
    methods: Annotated[str, typer.Option(help=f"all, or some of {','.join(METHODS)}.")] = "all",
    seconds: Annotated[float, typer.Option(help="Of training, for each method.")] = _SECONDS,
    start: Annotated[
        Path | None, typer.Option(help="An exported flow checkpoint to start from, instead of FOLDER's.")
    ] = None,
    rehearsal_only: Annotated[
        bool, typer.Option("--rehearsal", help="A few steps of each method, a few pictures.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of the run's settings, such as configs/miniature.toml.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: dmd2.objective.fake_updates=2.")
    ] = None,
    scored: Annotated[bool, typer.Option("--score/--no-score", help="Only train.")] = True,
    steps: Annotated[list[int] | None, typer.Option(help="Step counts; repeat. 1, 2, 4, 8, 30.")] = None,
    combinations: Annotated[list[str] | None, typer.Option(help="unseen, seen, or both (repeat).")] = None,
    count: Annotated[int, typer.Option(help="Pictures a task.")] = _COUNT,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 50,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16, of the pictures.")] = "auto",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
) -> None:
    """Train and score those methods that FOLDER/compare lacks, and write how they compare."""
    try:
        names = find_methods(methods)
        run = rehearsal() if rehearsal_only else read_run(config) if config else Run()
        settings = changed(_rehearsed(run) if rehearsal_only else Comparison.of(run, seconds), changes or [])
        splits = _splits(combinations or (["unseen"] if rehearsal_only else ["unseen", "seen"]))
        counts = tuple(Steps(each) for each in steps or (_REHEARSED_STEPS if rehearsal_only else _STEPS))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    out = folder / "compare"
    try:
        train_methods(start or folder, out, names, settings, torch.device(device))
        if scored:
            # Not above: training does not even import the judge.
            from twinshot_distill.evaluation.comparison import Scoring
            from twinshot_distill.evaluation.comparison_report import write_comparison

            plan = Scoring(counts, splits, 1 if rehearsal_only else count, batch, device, precision)
            write_comparison(out, names, plan)
    except TrainingError as error:
        say(f"Error: {error}")
        raise typer.Exit(2) from None


def _splits(names: Sequence[str]) -> tuple[Split, ...]:
    for name in names:
        if name not in ("seen", "unseen"):
            raise ValueError(f"combinations {name!r} are not 'seen' or 'unseen'")
    return cast("tuple[Split, ...]", tuple(names))


def _rehearsed(run: Run) -> Comparison:
    """A step or two of each kind, of everything at its smallest."""
    settings = Comparison.of(changed(run, ["twinflow.batch=4"]), 0.01)
    return changed(settings, ["dmd2.objective.fake_updates=1", "world.pool=16", "world.scenes=64"])


if __name__ == "__main__":
    typer.run(main)
