"""Export the transformer of a full-size Z-Image as ONNX on a machine with less memory than two copies take.

Weights are random and mapped to a file, which the system may write out and read again; so what the process
itself needs stays small. Prints a row of figures as JSON. Needs 25 GB of disk for a while:

    python benchmarks/export_z_image.py --folder /somewhere/with/space
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from twinshot_engine.config import EngineConfig, Placement
from twinshot_engine.families import find_family
from twinshot_engine.random_weights import find_random
from twinshot_engine.tensorrt.export import export_stage
from twinshot_engine.tensorrt.manifest import TRANSFORMER
from twinshot_engine.tensorrt.redirected import mapped, unread
from twinshot_engine.tensorrt.stages import Stage, export_stages
from twinshot_engine.types import Size
from twinshot_engine.weights import StoredPart

_INTERVAL = 0.2
_GB = 1e9


def read_memory(field: str) -> int:
    """Bytes of this process by the name that Linux gives them, such as ``RssAnon``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Yield a list whose only entry is the most memory that no file stood behind."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(_INTERVAL):
            peak[0] = max(peak[0], read_memory("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def load_transformer(reference: str, size: Size, folder: Path) -> Stage:
    """Load the transformer alone, mapped to a file in ``folder``, and take it as a stage."""
    place = mapped(folder)

    def redirect(part: StoredPart) -> StoredPart:
        return place(part) if part.folder.name == TRANSFORMER else unread(part)

    checkpoint = replace(find_random(reference), redirect=redirect)
    config = EngineConfig(reference, device="cpu", sizes=(size,), steps=(1,))
    placement = Placement(torch.device("cpu"), "bf16")
    model = find_family(checkpoint).load(checkpoint, config, placement, report)
    return next(stage for stage in export_stages(model, [size]) if stage.kind == TRANSFORMER)


def report(stage: str, fraction: float) -> None:
    """Say how far it is."""
    print(f"\r{stage} {fraction:4.0%}", end="", file=sys.stderr)


def main() -> None:
    """Export, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where there are 25 GB; a temporary folder if not given")
    parser.add_argument("--side", type=int, default=1024, help="width and height in pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = (options.side, options.side)
    with TemporaryDirectory(dir=options.folder) as temporary, watched_memory() as peak:
        folder = Path(temporary)
        started = time.perf_counter()
        stage = load_transformer("random:z-image", size, folder)
        loaded = time.perf_counter()
        graph = export_stage(stage, folder / "onnx")
        done = time.perf_counter()
        files = {path.name: path.stat().st_size for path in sorted(graph.parent.iterdir())}
    row = {
        "benchmark": "export",
        "family": "z-image",
        "part": "transformer",
        "precision": "bf16",
        "width": size[0],
        "height": size[1],
        "parameters": sum(p.numel() for p in stage.module.parameters() if not p.is_meta),
        "files": files,
        "peak_private_gb": round(peak[0] / _GB, 2),
        "peak_with_mapped_files_gb": round(read_memory("VmHWM") / _GB, 2),
        "load_seconds": round(loaded - started, 1),
        "export_seconds": round(done - loaded, 1),
        "cpu": platform.processor() or platform.machine(),
        "versions": {"torch": str(torch.__version__)},
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
