"""How many images a second one GPU draws in batches, every prompt a new one.

    python benchmarks/throughput.py --random-weights sana-1.6b --batch 8 --precision fp8

Whole calls of ``Engine.generate``: tokenising, text, noise, denoising, decoding and the copy to the host, but
no image files, which the server makes in a process of its own. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import count
from statistics import median

import torch

from twinshot_engine.benchmark.latency import Job, describe, make_prompt
from twinshot_engine.benchmark.rows import Row
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

WARM = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--random-weights", default="sana-1.6b", help="a published size (default sana-1.6b)")
    parser.add_argument(
        "--precision", default="bf16", help="bf16, or fp8 with the text encoder (default bf16)"
    )
    parser.add_argument("--batch", type=int, default=8, help="images in a call (default 8)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a prompt (default 128)")
    parser.add_argument("--samples", type=int, default=20, help="calls that count (default 20)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This needs a GPU, and there is none.")
    row = measure(options)
    for name in ("checkpoint", "precision", "batch", "median_ms", "images_per_s"):
        print(f"{name:<14} {row[name]}")
    print(json.dumps([row]))


def measure(options: argparse.Namespace) -> Row:
    """Draw batches one after another."""
    job = Job(1024, 1024, tokens=options.tokens, samples=options.samples)
    fp8 = options.precision == "fp8"
    config = EngineConfig(
        f"random:{options.random_weights}",
        "cuda",
        options.precision,
        fp8,
        sizes=((job.width, job.height),),
        steps=(1,),
        batch_sizes=(1, options.batch),
        max_batch=options.batch,
    )
    engine = Engine.load(config)
    engine.warm()
    numbers = count()
    calls = [
        [request(engine, job, next(numbers)) for _ in range(options.batch)]
        for _ in range(WARM + options.samples)
    ]
    times = [call_ms(engine, requests) for requests in calls][WARM:]
    milliseconds = median(times)
    return describe(engine, job) | {
        "benchmark": "throughput",
        "batch": options.batch,
        "part": "generate",
        "median_ms": round(milliseconds, 2),
        "images_per_s": round(options.batch / milliseconds * 1000, 2),
        "samples": options.samples,
        "peak_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
    }


def request(engine: Engine, job: Job, number: int) -> GenerateRequest:
    """A request with a prompt of its own."""
    prompt = make_prompt(engine.model.tokenizer, job.tokens, number)
    return GenerateRequest(prompt, seed=number, width=job.width, height=job.height)


def call_ms(engine: Engine, requests: list[GenerateRequest]) -> float:
    """Milliseconds of one call; it ends with the images on the host."""
    start = time.perf_counter()
    engine.generate(requests)
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main()
