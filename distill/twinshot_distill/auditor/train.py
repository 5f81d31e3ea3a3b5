"""Train the auditor, calibrate it and freeze it: ``python -m twinshot_distill.auditor.train --out FOLDER``.

About an hour on one CPU core. Run it before a generator is trained, never after one was judged.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from twinshot_distill.auditor.data import IGNORED, NOTHING, Examples, draw_examples
from twinshot_distill.auditor.judge import CARD, STRICT, WEIGHTS, Auditor
from twinshot_distill.auditor.model import OWN_COLOR, CellLabeller, Labels
from twinshot_distill.verifier.bank import SpriteBank, find_twins
from twinshot_distill.world.composer import Composer, arrange
from twinshot_distill.world.scenes import TASKS, Scene, sample_scene
from twinshot_distill.world.vocabulary import COLORS, OBJECTS

SEED = 424_242
RATE = 2e-3
EMPTY_WEIGHT = 0.3
"""Most cells hold nothing; at full weight they would drown the rest."""

_THRESHOLDS = tuple(round(0.2 + 0.05 * step, 2) for step in range(13))
console = Console()
app = typer.Typer(add_completion=False)


def loss_of(labels: Labels, examples: Examples, twins: dict[int, int]) -> Tensor:
    """Cross entropy over the cells' kinds, and over the colours of those that hold something."""
    weight = torch.ones(NOTHING + 1)
    weight[NOTHING] = EMPTY_WEIGHT
    kind = F.cross_entropy(labels.kind.float(), examples.kinds, weight, ignore_index=IGNORED)
    colors = examples.colors.clone()
    own = colors == OWN_COLOR
    for index, twin in twins.items():
        # A thing whose own colours are those of a name may be called either.
        colors[own & (examples.kinds == index) & (torch.rand(colors.shape) < 0.5)] = twin
    return kind + 0.5 * F.cross_entropy(labels.color.float(), colors, ignore_index=IGNORED)


def train(steps: int, batch: int, progress: Progress) -> CellLabeller:
    """Train on pictures drawn as they are needed; returns the moving average of the weights."""
    torch.manual_seed(SEED)
    rng, generator = Random(SEED), torch.Generator().manual_seed(SEED)
    composer = Composer(scene_variations=40, plain_variations=10)
    model = CellLabeller(len(OBJECTS))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    twins = _twin_labels()
    task = progress.add_task("training", total=steps)
    for step in range(steps):
        examples = draw_examples(rng, generator, composer, batch)
        with torch.autocast("cpu", torch.bfloat16):
            labels = model(examples.pictures)
        loss = loss_of(labels, examples, twins)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        progress.advance(task)
        if step % 50 == 0:
            progress.console.print(f"step {step:5d}  loss {loss.item():.3f}")
    if not isinstance(average.module, CellLabeller):
        raise TypeError(f"averaging turned the network into {type(average.module)}")
    return average.module.eval()


def _twin_labels() -> dict[int, int]:
    names = [entry.name for entry in OBJECTS]
    colors = list(COLORS)
    return {names.index(noun): colors.index(color) for noun, color in find_twins(SpriteBank()).items()}


def freeze(model: CellLabeller, settings: dict[str, int], folder: Path) -> None:
    """Write the weights as fp16 safetensors, and the card; the threshold is not calibrated yet."""
    folder.mkdir(parents=True, exist_ok=True)
    blob = save({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()})
    (folder / WEIGHTS).write_bytes(blob)
    card = {
        "sha256": hashlib.sha256(blob).hexdigest(),
        "date": datetime.now(UTC).date().isoformat(),
        "threshold": STRICT,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "twins": find_twins(SpriteBank()),
        "training": settings,
        "classes": [entry.name for entry in OBJECTS],
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")


def judged(auditor: Auditor, count: int, seed: int, threshold: float) -> tuple[float, float]:
    """Pass rates of true scenes and of scenes of the same task that another picture shows."""
    composer, rng = Composer(scene_variations=3, plain_variations=3), Random(seed)
    true = false = 0
    for task in TASKS:
        scenes = [sample_scene(rng, task, "unseen") for _ in range(count)]
        pictures = composer.render(arrange(rng, scenes)) / 2 + 0.5
        true += sum(auditor.check(pictures.clamp(0, 1), scenes, threshold))
        others: list[Scene] = scenes[1:] + scenes[:1]
        false += sum(auditor.check(pictures.clamp(0, 1), others, threshold))
    return true / (count * len(TASKS)), false / (count * len(TASKS))


def calibrate(folder: Path, count: int = 60) -> None:
    """Choose the highest threshold that costs true scenes at most half a percent, and write it down."""
    auditor = Auditor.load(folder)
    rates = {limit: judged(auditor, count, SEED + 1, limit) for limit in _THRESHOLDS}
    best = max(true for true, _ in rates.values())
    chosen = max(limit for limit, (true, _) in rates.items() if true >= best - 0.005)
    card = json.loads((folder / CARD).read_text())
    tested = {limit: judged(auditor, 2 * count, SEED + 2, limit) for limit in (chosen, STRICT)}
    card |= {"threshold": chosen, "measured": {str(limit): rates for limit, rates in tested.items()}}
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
    for limit, (true, false) in tested.items():
        console.print(f"threshold {limit}: true scenes passed {true:.3f}, others {false:.3f}")


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder of the auditor")],
    steps: Annotated[int, typer.Option(help="optimiser steps")] = 2_600,
    batch: Annotated[int, typer.Option(help="pictures a step")] = 32,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Train, freeze, calibrate."""
    torch.set_num_threads(threads)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        model = train(steps, batch, progress)
    freeze(model, {"steps": steps, "batch": batch, "seed": SEED}, out)
    with console.status("calibrating"):
        calibrate(out)
    console.print(f"frozen in {out}")


if __name__ == "__main__":
    app()
