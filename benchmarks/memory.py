"""GPU memory of every family at each setting, and what a switch of adapters costs, in random weights.

    python benchmarks/memory.py --checkpoints random:z-image,random:qwen-image --write

Each row is a process of its own, so that nothing of the one before it counts: it loads, captures and draws a
picture. Beside what was measured (the most that torch reserved, and all that the device then holds) stands
what the engine said it would need. `--adapter-rank 64` also makes a LoRA of all matrices of the blocks, and
times switching to it and back. Prints a table and, last, one JSON line; `--write` keeps the rows in
benchmarks/results/. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from twinshot_engine.benchmark.rows import facts
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.families import plan
from twinshot_engine.opening import find_checkpoint
from twinshot_engine.random_weights import PREFIX, PUBLISHED
from twinshot_engine.types import GenerateRequest

RESULTS = Path(__file__).parent / "results"
SETTINGS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp8": {"precision": "fp8"},
    "low": {"memory": "low"},
}
SIZE = (1024, 1024)
SHOWN = ("planned_gb", "weights_gb", "peak_gb", "device_gb", "total_ms", "to_adapter_ms", "to_base_ms")

Row = dict[str, Any]


def main() -> None:
    """Measure each checkpoint at each setting, print, and keep the rows if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoints", default=",".join(PREFIX + name for name in PUBLISHED))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of " + ", ".join(SETTINGS))
    parser.add_argument("--adapter-rank", type=int, default=0, help="time adapters of this rank too")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        checkpoint, setting = options.one
        print(json.dumps(measure(checkpoint, setting, options.adapter_rank)))
        return
    if not torch.cuda.is_available():
        sys.exit("This needs a GPU, and there is none.")
    rows = []
    for checkpoint in options.checkpoints.split(","):
        for setting in options.settings.split(","):
            rows.append(measure_apart(checkpoint, setting, options.adapter_rank))
            print(f"{checkpoint} {setting}: " + ", ".join(f"{key} {rows[-1].get(key)}" for key in SHOWN))
    if options.write:
        name = "-".join(torch.cuda.get_device_name().split()).lower()
        (RESULTS / f"memory-{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))


def measure_apart(checkpoint: str, setting: str, rank: int) -> Row:
    """Measure in a process of its own; a checkpoint that does not fit becomes a row that says so."""
    command = [sys.executable, __file__, "--adapter-rank", str(rank), "--one", checkpoint, setting]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"benchmark": "memory", "checkpoint": checkpoint, "setting": setting, "failed": True}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(checkpoint: str, setting: str, rank: int) -> Row:
    """Load, capture and draw once; `_gb` are 1e9 bytes."""
    config = EngineConfig(checkpoint, sizes=(SIZE,), steps=(1,), **SETTINGS[setting])
    planned = plan(find_checkpoint(checkpoint), config, config.placement())
    engine = Engine.load(config)
    engine.warm()
    device = engine.model.placement.device
    row = {
        "benchmark": "memory",
        "checkpoint": checkpoint,
        "family": checkpoint.removeprefix(PREFIX) if checkpoint.startswith(PREFIX) else engine.info.family,
        "setting": setting,
        "precision": engine.info.precision,
        "text_precision": engine.info.text_precision,
        "width": SIZE[0],
        "height": SIZE[1],
        "planned_gb": round((sum(planned.weight_bytes.values()) + planned.workspace_bytes) / 1e9, 2),
        "weights_gb": round(torch.cuda.memory_allocated(device) / 1e9, 2),
        "total_ms": _milliseconds(engine, None),
        **facts(device),
    }
    free, total = torch.cuda.mem_get_info(device)
    row["peak_gb"] = round(torch.cuda.max_memory_reserved(device) / 1e9, 2)
    row["device_gb"] = round((total - free) / 1e9, 2)
    return row | (measure_switch(engine, rank) if rank else {})


def measure_switch(engine: Engine, rank: int) -> Row:
    """Milliseconds that a picture takes longer where it is the first with an adapter, and without again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        write_adapter(engine, rank, path)
        engine.load_adapter("measured", str(path))
    usual = _milliseconds(engine, None)
    there, back = [], []
    for _ in range(5):
        there.append(_milliseconds(engine, "measured") - usual)
        back.append(_milliseconds(engine, None) - usual)
    return {
        "adapter_rank": rank,
        "to_adapter_ms": round(sorted(there)[2], 1),
        "to_base_ms": round(sorted(back)[2], 1),
        "kept_gb": round(engine.adapter_bytes / 1e9, 2),
    }


def write_adapter(engine: Engine, rank: int, path: Path) -> None:
    """A LoRA of every matrix in the transformer's blocks."""
    adaptable = engine.model.adaptable
    if adaptable is None:
        sys.exit(f"{engine.info.family} takes no adapters.")
    tensors = {}
    for name, header in adaptable.stored.headers.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(header.shape) == 2 and any(part.isdigit() for part in module.split(".")):
            rows, columns = header.shape
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, dtype=torch.bfloat16)
            tensors[f"{module}.lora_B.weight"] = torch.zeros(rows, rank, dtype=torch.bfloat16)
    save_file(tensors, path)


def _milliseconds(engine: Engine, adapter: str | None) -> float:
    """Of one picture whose prompt is cached or not, as the first with an adapter must encode it again."""
    request = GenerateRequest("a red apple", 0, *SIZE, adapter=adapter)
    started = time.perf_counter()
    engine.generate([request])
    return round((time.perf_counter() - started) * 1000, 2)


if __name__ == "__main__":
    main()
