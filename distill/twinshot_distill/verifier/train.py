"""Train the detector, calibrate it, measure it and freeze it.

    python -m twinshot_distill.verifier.train --out FOLDER

About forty minutes on one CPU core. Writes `verifier.safetensors`, `verifier.json` and
`README.md`; run it before a generator is trained, never after one was judged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from twinshot_distill.verifier.augment import augment
from twinshot_distill.verifier.bank import SpriteBank, find_twins
from twinshot_distill.verifier.data import DataSettings, batch, render
from twinshot_distill.verifier.freeze import FOLDER, freeze
from twinshot_distill.verifier.loss import color_choices, detection_loss, make_targets
from twinshot_distill.verifier.measure import calibrate, measure
from twinshot_distill.verifier.model import Detector
from twinshot_distill.verifier.report import write_report
from twinshot_distill.verifier.scoring import Verifier
from twinshot_distill.world.vocabulary import OBJECTS

app = typer.Typer(add_completion=False)
console = Console()


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The optimiser's side of a run."""

    steps: int = 7_000
    batch: int = 32
    rate: float = 2.5e-3
    weight_decay: float = 0.02
    ema: float = 0.999
    seed: int = 5


_TRAIN, _DATA = TrainSettings(), DataSettings()
_CACHE = Path(tempfile.gettempdir(), "twinshot-verifier")


def _step(model: Detector, pictures: Tensor, labels: Tensor, choices: Tensor) -> Tensor:
    """One batch's loss; the network runs in bf16, the loss in fp32."""
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(pictures.to(memory_format=torch.channels_last))
    return detection_loss(maps, make_targets(labels), choices)


def train(
    settings: TrainSettings, data: DataSettings, twins: dict[str, str], folder: Path, progress: Progress
) -> Detector:
    """The trained detector: the weights' moving average, in fp32."""
    torch.manual_seed(settings.seed)
    rng, draws = torch.Generator().manual_seed(settings.seed), np.random.default_rng(settings.seed)
    pictures, labels = render(data, folder, _bar(progress, "rendering", data.scenes))
    model = Detector(len(OBJECTS)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, settings.steps, pct_start=0.15, cycle_momentum=False
    )
    choices, advance = color_choices(twins), _bar(progress, "training", settings.steps)
    for step in range(settings.steps):
        chosen = draws.integers(0, data.scenes, settings.batch)
        loss = _step(model, *augment(*batch(pictures, labels, chosen), rng), choices)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        advance(step + 1)
        if step % 100 == 0:
            progress.console.print(f"step {step:5d}  loss {loss.item():.3f}")
    if not isinstance(average.module, Detector):
        raise TypeError(f"averaging turned the detector into {type(average.module)}")
    return average.module.eval()


def _bar(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    task = progress.add_task(name, total=total)
    return lambda done: progress.update(task, completed=done)


@app.command()
def main(
    steps: Annotated[int, typer.Option(help="optimiser steps")] = _TRAIN.steps,
    scenes: Annotated[int, typer.Option(help="training pictures")] = _DATA.scenes,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="folder of the verifier; needed to train, else the shipped one")
    ] = None,
    cache: Annotated[Path, typer.Option(help="where rendered pictures are kept")] = _CACHE,
    remeasure: Annotated[bool, typer.Option(help="measure the frozen verifier again, train nothing")] = False,
) -> None:
    """Train, freeze, calibrate, measure; or measure the frozen verifier again."""
    torch.set_num_threads(threads)
    if not remeasure:
        if out is None:
            raise typer.BadParameter("name a folder, so that the shipped verifier stays", param_hint="--out")
        _train_and_freeze(steps, scenes, out, cache)
    folder = out or FOLDER
    with console.status("measuring"):
        write_report(folder, measure(Verifier.load(folder)))
    console.print(f"frozen in {folder}")


def _train_and_freeze(steps: int, scenes: int, out: Path, cache: Path) -> None:
    settings, data = TrainSettings(steps=steps), DataSettings(scenes=scenes)
    twins = find_twins(SpriteBank())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        model = train(settings, data, twins, cache, progress)
    freeze(model, twins, {"train": asdict(settings), "data": asdict(data)}, out)
    with console.status("calibrating"):
        calibrate(out)


if __name__ == "__main__":
    app()
