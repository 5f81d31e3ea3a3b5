"""How long a server's engine needs from its start to its first request, stage by stage.

    python benchmarks/cold_start.py --random-weights z-image --precision bf16 --write

Writes a checkpoint of random weights in the published layout to a temporary folder (20 GB for Z-Image,
removed again), then starts the engine's process from it as a server does, imports included. The first start
fills the kernel cache and does not count. Then the weights are in memory (`page cache`), and in the last two
starts they are on the disk alone, without and with reading ahead. Without a GPU it is the built-in
checkpoint's start. Prints a table and, last, one JSON line; `--write` keeps the rows in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
from twinshot_engine.random_weights import RandomCheckpoint, find_random
from twinshot_engine.types import EngineInfo
from twinshot_server.processes.start_clock import WARMING
from twinshot_server.rehearsal import rehearse_start
from twinshot_server.settings import Settings

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
SHARD_BYTES = 4 * 10**9
LONGEST_PROMPT = 32768
PARTS = ("text_encoder", "transformer", "vae")


def main() -> None:
    """Write a checkpoint, start from it, and print what each start took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--random-weights", default="z-image")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        rows = measure(Settings(precision="fp32"), BUILTIN_FOLDER)
        name = "cold-start-builtin-cpu"
    else:
        with tempfile.TemporaryDirectory() as folder:
            seconds = write_checkpoint(find_random(f"random:{options.random_weights}"), Path(folder))
            print(f"checkpoint written in {seconds:.0f} s", file=sys.stderr)
            fp8 = options.precision == "fp8"
            settings = Settings(
                checkpoint=folder, precision=options.precision, text_fp8=fp8, sizes=options.size
            )
            rows = measure(settings, Path(folder))
        gpu = "-".join(rows[0]["gpu"].split()).lower()
        name = f"cold-start-{options.random_weights}-{options.precision}-{gpu}"
    for row in rows:
        print(f"{row['weights']:<28} {row['stage']:<24} {row['median_ms'] / 1000:7.2f} s")
    if options.write:
        (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))


def measure(settings: Settings, folder: Path) -> list[Row]:
    """The rows of all starts that count."""
    start(settings)
    rows = rows_of("page cache", *start(settings))
    # Only the first replica reads ahead.
    for weights, replica in (("disk, not read ahead", 1), ("disk, read ahead", 0)):
        forget(folder)
        rows += rows_of(weights, *start(settings.model_copy(update={"replica": replica})))
    return rows


def start(settings: Settings) -> tuple[EngineInfo, dict[str, float]]:
    """What was started, and seconds of each stage and of each part of warming, as the process tells."""
    marks: list[tuple[str, float]] = []

    def mark(stage: str, _done: float) -> None:
        name = stage.partition(",")[0]
        if not marks or marks[-1][0] != name:
            marks.append((name, time.perf_counter()))

    info, seconds = rehearse_start(settings, mark)
    loaded, *rest = [number for number, (name, _) in enumerate(marks) if name == "ready"]
    warming = marks[loaded + 1 : rest[0] + 1] if rest else []
    parts = {f"{WARMING}: {name}": end - began for (name, began), (_, end) in pairwise(warming)}
    return info, seconds | parts


def forget(folder: Path) -> None:
    """Have the operating system drop what it keeps of the weights in memory."""
    os.sync()
    for path in folder.glob("*/*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rows_of(weights: str, info: EngineInfo, seconds: dict[str, float]) -> list[Row]:
    """A row for each stage, and one for all of them."""
    width, height = info.sizes[0]
    common: Row = {
        "benchmark": "latency",
        "system": "twinshot",
        "part": "ready",
        "weights": weights,
        "family": info.family,
        "precision": info.precision,
        "width": width,
        "height": height,
        "batch": 1,
        "steps": 1,
        "samples": 1,
    } | facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    stages = {**seconds, "total": sum(each for stage, each in seconds.items() if ": " not in stage)}
    return [common | {"stage": stage, "median_ms": round(each * 1000, 1)} for stage, each in stages.items()]


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


if __name__ == "__main__":
    main()
