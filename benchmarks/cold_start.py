"""How long a server needs from start to first request, stage by stage, with the weights in the page cache.

    python benchmarks/cold_start.py --random-weights z-image --precision bf16 --write

Writes a checkpoint of random weights in the published layout to a temporary folder (20 GB for Z-Image,
removed again), then loads and warms it in fresh processes: the first fills the kernel cache, the second
counts. Prints a table and, last, one JSON line; `--write` keeps the rows in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from twinshot_engine.benchmark.rows import facts
from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.random_weights import RandomCheckpoint, find_random

RESULTS = Path(__file__).parent / "results"
SHARD_BYTES = 4 * 10**9
LONGEST_PROMPT = 32768
PARTS = ("text_encoder", "transformer", "vae")


def main() -> None:
    """Write a checkpoint, start from it twice, print the second start."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--random-weights", default="z-image")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    parser.add_argument("--start", metavar="FOLDER", help=argparse.SUPPRESS)  # what the fresh processes run
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start, options.precision, options.size)))
        return
    if not torch.cuda.is_available():
        sys.exit("This needs a GPU, and there is none.")
    with tempfile.TemporaryDirectory() as folder:
        seconds = write_checkpoint(find_random(f"random:{options.random_weights}"), Path(folder))
        print(f"checkpoint written in {seconds:.0f} s", file=sys.stderr)
        again = [sys.executable, __file__, "--start", folder]
        again += ["--precision", options.precision, "--size", options.size]
        for _ in range(2):
            done = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True)
            rows = json.loads(done.stdout.splitlines()[-1])
    for row in rows:
        print(f"{row['stage']:<24} {row['median_ms'] / 1000:7.2f} s")
    if options.write:
        name = "-".join(rows[0]["gpu"].split()).lower()
        path = RESULTS / f"cold-start-{options.random_weights}-{options.precision}-{name}.json"
        path.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))


def write_checkpoint(checkpoint: RandomCheckpoint, folder: Path) -> float:
    """Save every part in shards, as published checkpoints are; returns the seconds it took."""
    started = time.perf_counter()
    (folder / "model_index.json").write_text(json.dumps(checkpoint.read_json("model_index.json")))
    shutil.copytree(BUILTIN_FOLDER / "tokenizer", folder / "tokenizer")
    settings = folder / "tokenizer" / "tokenizer_config.json"
    unlimited = json.loads(settings.read_text()) | {"model_max_length": LONGEST_PROMPT}
    settings.write_text(json.dumps(unlimited))
    for name in PARTS:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(checkpoint.read_json(name)))
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards(checkpoint, name)):
            file = f"model-{number:05}.safetensors"
            save_file(shard, folder / name / file)
            weight_map |= dict.fromkeys(shard, file)
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return time.perf_counter() - started


def shards(checkpoint: RandomCheckpoint, name: str) -> Iterator[dict[str, Tensor]]:
    """A part's tensors on the host, a few gigabytes at a time."""
    part = checkpoint.part(name)
    shard: dict[str, Tensor] = {}
    for key, tensor in part.read(part.headers, torch.device("cuda")):
        shard[key] = tensor.cpu()
        if sum(each.nbytes for each in shard.values()) > SHARD_BYTES:
            yield shard
            shard = {}
    yield shard


def start(folder: str, precision: str, size: str) -> list[dict[str, Any]]:
    """Load and warm as a server does, and tell when each stage began."""
    marks: list[tuple[str, float]] = []

    def mark(stage: str, _done: float) -> None:
        stage = stage.partition(",")[0]
        if not marks or marks[-1][0] != stage:
            marks.append((stage, time.perf_counter()))

    width, height = map(int, size.split("x"))
    config = EngineConfig(folder, precision=precision, text_fp8=precision == "fp8", sizes=((width, height),))
    engine = Engine.load(config, mark)
    engine.warm(mark)
    common: dict[str, Any] = {
        "benchmark": "latency",
        "system": "twinshot",
        "part": "ready",
        "family": engine.info.family,
        "precision": precision,
        "width": width,
        "height": height,
        "batch": 1,
        "steps": 1,
        "samples": 1,
    } | facts(torch.device("cuda"))
    spans = [(stage, after - before) for (stage, before), (_, after) in pairwise(marks) if stage != "ready"]
    spans.append(("total", marks[-1][1] - marks[0][1]))
    return [common | {"stage": stage, "median_ms": round(span * 1000, 1)} for stage, span in spans]


if __name__ == "__main__":
    main()
