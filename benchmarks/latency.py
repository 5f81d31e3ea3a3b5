"""How long a client waits for a picture: POST /generate, one request after another.

The server runs as its own process on this machine's loopback, as users run it, so `request` holds
everything: HTTP, text, denoising, decoding, the image file and the way back. One request at a time measures
latency without waiting; client and server share the machine's cores. The first requests warm the server up
and are not counted. Each request has a prompt and a seed of its own, so that no cache answers. The stages
are the server's own measurement, from `Server-Timing`; `total` is text, denoise and decode together.

Prints a table and, last, one JSON line; `--write` keeps the rows in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx2
import torch

from twinshot import Client, Timings
from twinshot_engine.benchmark.rows import facts, quantiles

ROOT = Path(__file__).parent.parent
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = (
    "left of a tree",
    "right of a tree",
    "above a chair",
    "below a chair",
    "on a beach",
    "in the snow",
    "at night",
)
PROMPTS = tuple(f"a {color} car {place}" for color, place in product(COLORS, PLACES))

Row = dict[str, Any]


def main() -> None:
    """Measure, print, and keep the rows if asked to."""
    options = parse_options()
    with server(options) as url, Client(url, timeout=600) as client:
        model = httpx2.get(f"{url}/v1/models").raise_for_status().json()["data"][0]
        width, height = map(int, (options.size or model["sizes"][0]).split("x"))
        asked = {"width": width, "height": height, "steps": options.steps, "format": options.format}
        samples = [draw(client, number, asked) for number in range(-options.warmup, options.requests)]
    facts = describe(model) | {"width": width, "height": height, "steps": options.steps}
    rows = [facts | summary for summary in summarise(samples[options.warmup :])]
    print_table(rows)
    if options.write:
        write(rows)
    print(json.dumps({row["part"]: row["median_ms"] for row in rows} | {"p95": rows[-1]["p95_ms"]}))


def parse_options() -> argparse.Namespace:
    """Options of the measurement; what else is given goes to `twinshot serve`, such as --checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=30, help="how many requests count (default 30)")
    parser.add_argument("--warmup", type=int, default=5, help="how many come before them (default 5)")
    parser.add_argument("--size", help="such as 256x256; the model's own if not given")
    parser.add_argument("--steps", type=int, default=1, help="forward passes (default 1)")
    parser.add_argument("--format", choices=["png", "jpeg", "webp"], default="png", help="(default png)")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    options, rest = parser.parse_known_args()
    options.serve = rest
    return options


@contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """A server process on a free port; yields its address and stops it at the end."""
    program = shutil.which("twinshot", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    command = [program or "twinshot", "serve", "--port", "0", "--log-level", "warning", *options.serve]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                sys.exit(process.wait())  # the server has said why
            yield line.split()[-1]
        finally:
            process.terminate()


def draw(client: Client, number: int, asked: dict[str, Any]) -> tuple[float, Timings]:
    """One request: seconds until the whole answer was here, and the server's stages."""
    started = time.perf_counter()
    generated = client.generate(PROMPTS[number % len(PROMPTS)], seed=number % 2**32, **asked)
    return time.perf_counter() - started, generated.timings


def summarise(samples: Sequence[tuple[float, Timings]]) -> list[Row]:
    """A row for every part, `request` last."""
    stages = [timings for _, timings in samples]
    parts = {
        "text": [times.text for times in stages],
        "denoise": [times.denoise for times in stages],
        "decode": [times.decode for times in stages],
        "total": [times.text + times.denoise + times.decode for times in stages],
        "request": [seconds * 1000 for seconds, _ in samples],
    }
    return [{"part": part, **quantiles(values)} for part, values in parts.items()]


def describe(model: Row) -> Row:
    """What was measured, where, and with which versions."""
    return {
        "benchmark": "latency",
        "system": "twinshot",
        "checkpoint": model["id"],
        "family": model["family"],
        "precision": model["precision"],
        "batch": 1,
        **facts(torch.device(model["device"])),
    }


def print_table(rows: Sequence[Row]) -> None:
    """The rows for people."""
    first = rows[0]
    print(f"{first['checkpoint']} ({first['family']}, {first['precision']}), gpu: {first['gpu']}")
    print(f"{first['width']}x{first['height']}, steps: {first['steps']}, requests: {first['samples']}")
    print(f"{first['versions']}, commit {first['commit']}")
    print(f"\n{'part':<10}{'p50 ms':>10}{'p95 ms':>10}")
    for row in rows:
        print(f"{row['part']:<10}{row['median_ms']:>10.2f}{row['p95_ms']:>10.2f}")
    print()


def write(rows: Sequence[Row]) -> None:
    """Keep the rows as a JSON list, in a file named after what was measured."""
    first = rows[0]
    device = "cpu" if first["gpu"].startswith("none") else "-".join(first["gpu"].split()).lower()
    name = f"latency-{first['checkpoint']}-{first['width']}x{first['height']}-{first['steps']}-{device}.json"
    path = ROOT / "benchmarks" / "results" / name.replace("/", "-")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
