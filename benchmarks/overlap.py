"""Whether it pays to encode the next prompt and decode the last image while one is denoised.

    python benchmarks/overlap.py --random-weights z-image --precision bf16

`serial` replays text, denoise and decode one after another in one stream; `overlapped` runs the
transformer in one stream, and the text of image N + 1 and the decoding of image N - 1 in another, with graphs
of their own that share no memory. Milliseconds an image over a row of images; several rounds of each in turn,
as the GPU's clock falls while it works. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from twinshot_engine.backends.fused import FusedBackend
from twinshot_engine.backends.stages import Advertised
from twinshot_engine.benchmark.rows import Row, facts
from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.families import Model
from twinshot_engine.text import Tokens

SIZE = (1024, 1024)
TOKENS = 128


def main() -> None:
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--random-weights", default="z-image")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--images", type=int, default=10, help="images in a row (default 10)")
    parser.add_argument("--rounds", type=int, default=5, help="rows of each way (default 5)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This needs a GPU, and there is none.")
    reference = f"random:{options.random_weights}"
    config = EngineConfig(reference, precision=options.precision, sizes=(SIZE,), steps=(1,))
    with torch.inference_mode():
        rows = measure(Engine.load(config).model, options.images, options.rounds)
    for row in rows:
        print(f"{row['system']:<22} {row['median_ms']:8.2f} ms an image  {row['rounds_ms']}")
    print(json.dumps(rows))


def measure(model: Model, images: int, rounds: int) -> list[Row]:
    """Time both ways in turn."""
    first, second = prepared(model), prepared(model)
    tokens = model.tokenizer.pad(list(range(1, TOKENS - 7)))
    noise = torch.randn(1, *model.latent_shape(*SIZE), device="cuda")
    ways: dict[str, Callable[[], None]] = {
        "serial": lambda: serial(first, model, tokens, noise, images),
        "overlapped": lambda: overlapped(first, second, model, tokens, noise, images),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            times[name].append(elapsed_ms(run) / images)
            print(f"{name}: {times[name][-1]:.2f} ms an image", file=sys.stderr)
    common: Row = {
        "benchmark": "overlap",
        "family": "z-image",
        "precision": model.placement.precision,
        "part": "total",
        "width": SIZE[0],
        "height": SIZE[1],
        "batch": 1,
        "steps": 1,
        "samples": rounds,
    } | facts(torch.device("cuda"))
    return [
        {"system": f"twinshot {name}", "median_ms": round(statistics.median(each[1:]), 2)}
        | {"rounds_ms": [round(value, 2) for value in each[1:]]}
        | common
        for name, each in times.items()
    ]


def prepared(model: Model) -> FusedBackend:
    """Graphs of their own for one shape."""
    backend = FusedBackend(model)
    for _ in backend.prepare(Advertised((SIZE,), (1,), (TOKENS,))):
        pass
    return backend


def serial(stages: FusedBackend, model: Model, tokens: Tokens, noise: Tensor, images: int) -> None:
    """One stage after another."""
    for _ in range(images):
        caption = stages.encode(tokens.ids, tokens.length)
        stages.decode(stages.denoise(noise, noise, caption, model.passes[1][0]))


def overlapped(
    main_stages: FusedBackend,
    side_stages: FusedBackend,
    model: Model,
    tokens: Tokens,
    noise: Tensor,
    images: int,
) -> None:
    """The transformer in the current stream, text and decoding beside it."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        caption = side_stages.encode(tokens.ids, tokens.length)
    main.wait_stream(side)
    for _ in range(images):
        latents = main_stages.denoise(noise, noise, caption, model.passes[1][0]).clone()
        denoised = main.record_event()
        with torch.cuda.stream(side):
            caption = side_stages.encode(tokens.ids, tokens.length)
            # The next pass may start as soon as its caption is there; only decoding waits for this one.
            ready = side.record_event()
            side.wait_event(denoised)
            side_stages.decode(latents)
        main.wait_event(ready)
    main.wait_stream(side)


def elapsed_ms(run: Callable[[], None]) -> float:
    """Milliseconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


if __name__ == "__main__":
    main()
