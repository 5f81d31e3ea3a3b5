"""What fp8 costs in quality: the built-in miniature in bf16, in fp8, and with its text encoder in fp8 too.

    python benchmarks/precision.py --count 200 --write

The same prompts and seeds are drawn in each precision. Beside the verifier's score stands how far the
pictures are from those in bf16, as PSNR over all of them and for the worst one. Needs a GPU with fp8.
Prints a table and, last, one JSON line; `--write` keeps the rows in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twinshot_distill.evaluate import draw, evaluate
from twinshot_distill.evaluation.trials import trials
from twinshot_distill.verifier.scoring import Verifier
from twinshot_distill.world.scenes import TASKS
from twinshot_engine.benchmark.rows import facts
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine

RESULTS = Path(__file__).parent / "results"
SETTINGS = (("fp32", False), ("bf16", False), ("fp8", False), ("fp8", True))
PICTURES_A_TASK = 32
SHOWN = ("score", "strict_score", "shuffled_score", "psnr_db", "worst_psnr_db", "n")

Row = dict[str, Any]
Pictures = NDArray[np.uint8]


def main() -> None:
    """Draw, score, compare, print, and keep the rows if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="pictures a task (default 200)")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This needs a GPU with fp8, and there is none.")
    rows, pictures = measure(options.count)
    for row in rows:
        setting = row["precision"], row["text_precision"]
        row.update(compare(pictures[setting], pictures["bf16", "bf16"]))
        print(f"{setting[0]}, text {setting[1]}: " + ", ".join(f"{key} {row[key]}" for key in SHOWN))
    if options.write:
        name = "-".join(torch.cuda.get_device_name().split()).lower()
        (RESULTS / f"precision-miniature-{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))


def measure(count: int) -> tuple[list[Row], dict[tuple[str, str], Pictures]]:
    """Score every setting, and draw the same pictures in each."""
    rows: list[Row] = []
    pictures: dict[tuple[str, str], Pictures] = {}
    verifier = Verifier.load().to("cuda")
    for precision, text_fp8 in SETTINGS:
        engine = Engine.load(EngineConfig(precision=precision, text_fp8=text_fp8, steps=(1,)))
        engine.warm()
        asked = [
            trial
            for task in TASKS
            for trial in trials(task, "unseen", PICTURES_A_TASK, engine.info.vocabulary)
        ]
        drawn = np.concatenate(list(draw(engine, asked, 1)))
        pictures[engine.info.precision, engine.info.text_precision] = drawn
        scored = evaluate(engine, verifier, method="twinflow", steps=1, split="unseen", count=count)
        rows += [row | facts(torch.device("cuda")) for row in scored if row["task"] == "mean"]
    return rows, pictures


def compare(pictures: Pictures, expected: Pictures) -> Row:
    """PSNR in dB over all pictures and of the worst; None where they are equal."""
    squares = np.square(pictures.astype(np.float64) - expected).mean(axis=(1, 2, 3))
    return {"psnr_db": decibels(float(squares.mean())), "worst_psnr_db": decibels(float(squares.max()))}


def decibels(square: float) -> float | None:
    """From a mean squared difference of bytes to PSNR."""
    return round(10 * float(np.log10(255**2 / square)), 2) if square else None


if __name__ == "__main__":
    main()
