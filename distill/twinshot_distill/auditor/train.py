"""Train the auditor, calibrate it and freeze it: ``python -m twinshot_distill.auditor.train --out FOLDER``.

About an hour on one CPU core. Run it before a generator is trained, never after one was judged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from twinshot_distill.auditor.data import IGNORED, NOTHING, Examples, PicturePool
from twinshot_distill.auditor.freeze import calibrate, freeze
from twinshot_distill.auditor.model import EMPTY_WEIGHT, OWN_COLOR, CellLabeller, Labels
from twinshot_distill.averages import RunningAverage, frozen_copy
from twinshot_distill.verifier.bank import SpriteBank, find_twins
from twinshot_distill.world.composer import Composer
from twinshot_distill.world.vocabulary import COLORS, INDEX, OBJECTS

SEED = 424_242
RATE = 2e-3
EMA = 0.999

_POOL, _PORTION = 4_096, 8
console = Console()
app = typer.Typer(add_completion=False)


def loss_of(labels: Labels, examples: Examples, twins: dict[int, int]) -> Tensor:
    """Cross entropy over the cells' kinds, and over the colours of those that hold something.

    Args:
        labels: the network's.
        examples: pictures and truth.
        twins: kind -> colour label that its own colours may be called as well.
    """
    device = labels.kind.device
    weight = torch.ones(NOTHING + 1, device=device)
    weight[NOTHING] = EMPTY_WEIGHT
    kind = F.cross_entropy(labels.kind.float(), examples.kinds.to(device), weight, ignore_index=IGNORED)
    rows, y, x = torch.nonzero(examples.colors != IGNORED, as_tuple=True)
    if len(rows) == 0:
        return kind
    answers = labels.color.float()[rows, :, y, x].log_softmax(1)
    truth = examples.colors[rows, y, x]
    either = torch.tensor([twins.get(index, OWN_COLOR) for index in examples.kinds[rows, y, x].tolist()])
    has_two = ((truth == OWN_COLOR) & (either != OWN_COLOR)).to(device)
    right, other = (answers.gather(1, choice[:, None].to(device))[:, 0] for choice in (truth, either))
    return kind - torch.where(has_two, torch.logaddexp(right, other), right).mean()


def train(
    pool: PicturePool,
    twins: dict[str, str],
    steps: int,
    batch: int,
    progress: Progress,
    device: torch.device,
) -> CellLabeller:
    """Train on pictures drawn as they are needed; returns the moving average of the weights."""
    torch.manual_seed(SEED)
    model = CellLabeller(len(OBJECTS)).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = frozen_copy(model)
    state = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    following = RunningAverage([(mean, now) for mean, now in state if mean.is_floating_point()], EMA)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    choices = {INDEX[noun]: list(COLORS).index(color) for noun, color in twins.items()}
    task = progress.add_task("training", total=steps)
    for step in range(steps):
        examples = pool.draw(batch)
        with torch.autocast(device.type, torch.bfloat16):
            labels = model(examples.pictures.contiguous(memory_format=torch.channels_last))
        loss = loss_of(labels, examples, choices)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        following.update()
        progress.advance(task)
        if step % 100 == 0:
            progress.console.print(f"step {step:5d}  loss {loss.item():.3f}")
    return average.cpu()


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder of the auditor")],
    steps: Annotated[int, typer.Option(help="optimiser steps")] = 6_000,
    batch: Annotated[int, typer.Option(help="pictures a step")] = 32,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    remeasure: Annotated[bool, typer.Option(help="measure the frozen auditor again, train nothing")] = False,
) -> None:
    """Train, freeze, calibrate and measure; or calibrate and measure a frozen auditor again."""
    torch.set_num_threads(threads)
    if not remeasure:
        _train_and_freeze(out, steps, batch, torch.device(device))
    with console.status("calibrating and measuring"):
        calibrate(out)
    console.print(f"frozen in {out}")


def _train_and_freeze(out: Path, steps: int, batch: int, device: torch.device) -> None:
    with console.status("drawing"):
        twins = find_twins(SpriteBank())
        composer = Composer(device, scene_variations=40, plain_variations=10)
        pool = PicturePool(composer, _POOL, _PORTION, SEED)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        model = train(pool, twins, steps, batch, progress, device)
    freeze(model, twins, {"steps": steps, "batch": batch, "seed": SEED}, out)


if __name__ == "__main__":
    app()
