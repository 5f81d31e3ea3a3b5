"""How long the decoder takes from latents to bytes, and where the time goes.

Needs a CUDA device and, beside torch, only the source roots: ``PYTHONPATH=kernels:engine``. Weights are
random at the published size, which changes pictures and not times. The serving decoder is captured in a CUDA
graph, as the engine does it; plain diffusers, if it is installed, runs channels first and eagerly in the same
process on the same latents, to pixels. ``error`` is the relative distance of the pixels from those of the
plain decoder in fp32.

Prints a table and, last, one JSON line; ``--profile`` adds the device time of every operation by its shapes
and of every kernel, ``--sweep`` times the kernels behind their convolutions at other tile sizes, and
``--write`` keeps the rows in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from twinshot_engine.benchmark.rows import facts, quantiles
from twinshot_engine.benchmark.timing import sample_ms
from twinshot_engine.vae.fused import FusedDecoder
from twinshot_engine.vae.kl import KLDecoder
from twinshot_engine.vae.kl_config import KLConfig
from twinshot_kernels import (
    attention,
    group_norm_silu,
    group_norm_silu_taps,
    group_statistics,
    quantize_taps,
    residual_statistics,
)

ROOT = Path(__file__).parent.parent
WARMUP = 5

Row = dict[str, Any]


@torch.inference_mode()
def main() -> None:
    """Measure, print, and keep the rows if asked to."""
    options = parse_options()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA device, and torch sees none.")
    # Chosen once per shape, in the calls before the capture.
    torch.backends.cudnn.benchmark = True
    facts = describe(options)
    decoder, latents = make(options)
    rows = [facts | row for row in measure(decoder, latents, options)]
    print_table(rows)
    if options.profile:
        print_profile(FusedDecoder(decoder, torch.bfloat16), latents)
    if options.sweep:
        sweep(options.samples)
    if options.write:
        write(rows)
    print(json.dumps({row["system"]: row["median_ms"] for row in rows} | {"gpu": facts["gpu"]}))


def parse_options() -> argparse.Namespace:
    """Options of the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="1024x1024", help="width x height in pixels (default 1024x1024)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default 1)")
    parser.add_argument("--samples", type=int, default=50, help="how many decodes count (default 50)")
    parser.add_argument("--no-diffusers", action="store_true", help="leave plain diffusers out")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--sweep", action="store_true", help="time kernels at other tile sizes")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    return parser.parse_args()


def make(options: argparse.Namespace) -> tuple[KLDecoder, Tensor]:
    """A random decoder in fp32 and latents, on the device."""
    torch.manual_seed(0)
    config = KLConfig()
    width, height = (int(side) // config.downscale for side in options.size.split("x"))
    with torch.device("cuda"):
        latents = torch.randn(options.batch, config.latent_channels, height, width)
        return KLDecoder(config).eval().requires_grad_(requires_grad=False), latents


def measure(decoder: KLDecoder, latents: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """A row for the serving decoder, diffusers, attention and a copy of the largest tensor."""
    pixels = exact(decoder, latents)
    fused = FusedDecoder(decoder, torch.bfloat16)
    replay = capture(partial(fused.decode_to_bytes, latents))
    error = distance(fused(latents), pixels)
    yield {"system": "twinshot", **times(replay, options.samples), "error": error}
    plain = None if options.no_diffusers else stock(decoder)
    if plain is not None:
        error = distance(plain(latents), pixels)
        yield {"system": "diffusers", **times(partial(plain, latents), options.samples), "error": error}
    batch, _, height, width = latents.shape
    packed = torch.randn(batch, height * width, 3, 512, dtype=torch.bfloat16, device="cuda")
    replay = capture(partial(attention, *packed.chunk(3, dim=2)))
    yield {"system": "attention", **times(replay, options.samples)}
    batch, _, height, width = pixels.shape
    largest = torch.empty(batch, 128, height, width, dtype=torch.bfloat16, device="cuda")
    row = times(capture(partial(torch.empty_like(largest).copy_, largest)), options.samples)
    moved = 2 * largest.nbytes
    yield {"system": "copy 128 channels", **row, "tb_per_s": round(moved / row["median_ms"] / 1e9, 2)}


def exact(decoder: KLDecoder, latents: Tensor) -> Tensor:
    """Pixels of the plain decoder in true fp32."""
    os.environ["TWINSHOT_ATTENTION"] = "sdpa"
    with torch.backends.cudnn.flags(allow_tf32=False):
        pixels: Tensor = decoder(latents)
    del os.environ["TWINSHOT_ATTENTION"]
    return pixels


def stock(decoder: KLDecoder) -> Callable[[Tensor], Tensor] | None:
    """Plain diffusers in bf16 with the same weights; None if it is not installed."""
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError:
        return None
    config = decoder.config
    levels = len(config.block_out_channels)
    model = diffusers.AutoencoderKL(
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False,
        use_post_quant_conv=config.use_post_quant_conv,
    )
    model.load_state_dict(decoder.state_dict(), strict=False)
    model.to("cuda", torch.bfloat16).eval()

    def decode(latents: Tensor) -> Tensor:
        pixels: Tensor = model.decode(decoder.denormalize(latents).to(torch.bfloat16)).sample
        return pixels

    return decode


def capture(function: Callable[[], Tensor]) -> Callable[[], object]:
    """Warm a function up and record it in a CUDA graph."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def times(function: Callable[[], object], samples: int) -> Row:
    """Median and 95th percentile of the time between two events, in milliseconds."""
    return quantiles(sample_ms(function, torch.device("cuda"), samples=samples, warm=WARMUP))


def distance(found: Tensor, reference: Tensor) -> float:
    """Relative distance in the 2-norm."""
    return round(float((found.float() - reference).norm() / reference.norm()), 5)


def print_profile(decoder: FusedDecoder, latents: Tensor) -> None:
    """Print the device time of one decode: by operation, by operation and shapes, and by kernel."""
    for _ in range(WARMUP):
        decoder.decode_to_bytes(latents)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as profiler:
        decoder.decode_to_bytes(latents)
        torch.cuda.synchronize()
    events = [e for e in profiler.key_averages(group_by_input_shape=True) if e.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    operations = [event for event in events if str(event.device_type).endswith("CPU")]
    totals: defaultdict[str, float] = defaultdict(float)
    print(f"{'ms':>8} {'calls':>5} {'TFLOP/s':>8}  operation and shapes")
    for event in operations:
        totals[event.key] += event.self_device_time_total / 1000
        rate = flops(event.key, event.input_shapes) * event.count / event.self_device_time_total / 1e6
        shapes = " ".join(str(shape) for shape in event.input_shapes if shape)
        spent = f"{event.self_device_time_total / 1000:8.3f} {event.count:5}"
        print(f"{spent} {f'{rate:.0f}' if rate else '':>8}  {event.key} {shapes}")
    totals["sum"] = sum(totals.values())
    print(f"\n{'ms':>8}  operation", *(f"{ms:8.3f}  {name}" for name, ms in totals.items()), sep="\n")
    print(f"\n{'ms':>8} {'calls':>5}  kernel")
    for event in events:
        if event not in operations:
            print(f"{event.self_device_time_total / 1000:8.3f} {event.count:5}  {event.key[:100]}")
    print()


class Setting(NamedTuple):
    """How the kernels on images are cut; the first of :data:`SETTINGS` is theirs."""

    stages: int
    statistics_programs: int
    norm_programs: int
    elements: int
    warps: int

    def apply(self) -> None:
        """Put the numbers where the kernels look for them."""
        norm = {"MAX_PROGRAMS": self.norm_programs}
        numbers = {
            "_images": {
                "STAGES": self.stages,
                "ELEMENTS_PER_TILE": self.elements,
                "NUM_WARPS": self.warps,
            },
            "group_statistics": {"MAX_PROGRAMS": self.statistics_programs},
            "group_norm_silu": norm,
            "group_norm_silu_taps": norm,
        }
        for name, values in numbers.items():
            vars(importlib.import_module(f"twinshot_kernels.{name}")).update(values)


SETTINGS = (
    Setting(4, 128, 512, 4096, 8),
    Setting(1, 128, 512, 4096, 8),
    Setting(3, 128, 512, 4096, 8),
    Setting(6, 128, 512, 4096, 8),
    Setting(4, 132, 528, 4096, 8),
    Setting(4, 128, 256, 4096, 8),
    Setting(4, 256, 512, 2048, 4),
    Setting(3, 128, 256, 8192, 8),
    Setting(3, 128, 256, 8192, 16),
)
LEVELS = ((512, 128), (512, 256), (256, 512), (128, 1024))


def sweep(samples: int) -> None:
    """Print what passes take behind a convolution, by channels and side of the image, in microseconds."""
    print("us behind a convolution: statistics / residual and statistics / norm after statistics, by level;")
    print("and the last norm, convolution and bytes at 128x1024\n")
    print(f"{'':<24}", *(f"{f'{channels}x{side}':>17}" for channels, side in LEVELS), f"{'last':>9}")
    for setting in SETTINGS:
        setting.apply()
        cells = ["/".join(f"{us:.0f}" for us in passes(*level, samples)) for level in LEVELS]
        name = " ".join(f"{number}" for number in setting)
        print(f"{name:<24}", *(f"{cell:>17}" for cell in cells), f"{last(*LEVELS[-1], samples):>9.0f}")
    SETTINGS[0].apply()
    wide = vars(importlib.import_module("twinshot_kernels.wide_attention"))
    tokens = torch.randn(2, 1, LEVELS[0][1] ** 2, 1, 512, device="cuda", dtype=torch.bfloat16)
    for size in (512, 256, 128, 64):
        wide["SCORE_BYTES"] = size * 2**20
        us = microseconds(partial(attention, tokens[0], tokens[1], tokens[1]), samples)
        print(f"attention, {size} MiB of scores at a time: {us:.0f}")
    wide["SCORE_BYTES"] = 512 * 2**20
    print()


def passes(channels: int, side: int, samples: int) -> tuple[float, float, float]:
    """Time the passes between two convolutions, less the first convolution, in microseconds."""
    x, residual = (image(channels, side) for _ in range(2))
    kernel = image(channels, 3, channels) / (3 * channels**0.5)
    vector = torch.rand(channels, device="cuda")

    def convolution() -> Tensor:
        return functional.conv2d(x, kernel, padding=1)

    def alone() -> Tensor:
        return group_statistics(convolution(), 32, 1e-6, vector)

    def added() -> Tensor:
        return residual_statistics(residual, convolution(), 32, 1e-6, vector)[0]

    def normed() -> Tensor:
        return group_norm_silu(convolution(), vector, vector, 32, 1e-6, channel_bias=vector)

    first, two, sums, three = (microseconds(call, samples) for call in (convolution, alone, added, normed))
    return two - first, sums - first, three - two


def last(channels: int, side: int, samples: int) -> float:
    """Time the decoder's last layers behind a residual, less that, in microseconds."""
    x, y = (image(channels, side) for _ in range(2))
    vector, bias = torch.rand(channels, device="cuda"), torch.rand(3, device="cuda")
    taps = torch.randn(channels, 32, device="cuda", dtype=torch.bfloat16)

    def added() -> Tensor:
        return residual_statistics(x, y, 32, 1e-6)[0]

    def finished() -> Tensor:
        out, known = residual_statistics(x, y, 32, 1e-6)
        products = group_norm_silu_taps(out, vector, vector, taps, 32, 1e-6, statistics=known)
        return quantize_taps(products, bias)

    return microseconds(finished, samples) - microseconds(added, samples)


def image(channels: int, side: int, batch: int = 1) -> Tensor:
    """Noise, channels last."""
    noise = torch.randn(batch, channels, side, side, device="cuda", dtype=torch.bfloat16)
    return noise.contiguous(memory_format=torch.channels_last)


def microseconds(call: Callable[[], Tensor], samples: int) -> float:
    """Median time of a call's replay."""
    return 1000 * float(times(capture(call), samples)["median_ms"])


def flops(operation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Count the operations of a convolution without stride, a transposed one or a product; else 0."""
    if "convolution" in operation and len(shapes) > 1:
        batch, _, height, width = shapes[0]
        return 2 * batch * height * width * prod(shapes[1])
    if operation in ("aten::addmm", "aten::addmm_", "aten::bmm"):
        left, right = [shape for shape in shapes if len(shape) > 1][-2:]
        return 2 * prod(left) * right[-1]
    return 0


def describe(options: argparse.Namespace) -> Row:
    """What was measured, where, and with which versions."""
    width, height = map(int, options.size.split("x"))
    return {
        "benchmark": "decoder",
        "family": "AutoencoderKL",
        "precision": "bf16",
        "part": "decode",
        "width": width,
        "height": height,
        "batch": options.batch,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        **facts(torch.device("cuda")),
    }


def print_table(rows: Sequence[Row]) -> None:
    """The rows for people."""
    first = rows[0]
    print(f"{first['gpu']}, {first['versions']}, commit {first['commit']}")
    print(f"{first['width']}x{first['height']}, batch {first['batch']}, {first['samples']} samples")
    print(f"\n{'system':<28}{'p50 ms':>10}{'p95 ms':>10}{'error':>10}{'TB/s':>8}")
    for row in rows:
        rest = f"{row.get('error', ''):>10}{row.get('tb_per_s', ''):>8}"
        print(f"{row['system']:<28}{row['median_ms']:>10.3f}{row['p95_ms']:>10.3f}{rest}")
    print()


def write(rows: Sequence[Row]) -> None:
    """Keep the rows as a JSON list, in a file named after what was measured."""
    first = rows[0]
    gpu = "-".join(first["gpu"].split()).lower()
    name = f"decoder-{first['width']}x{first['height']}-{first['batch']}-{gpu}.json"
    path = ROOT / "benchmarks" / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
