"""How near the kernels come to the limits of a GPU: ``python -m twinshot_kernels.benchmark``.

Each operation is captured in a CUDA graph, once for each of several sets of inputs, so that neither the
launches of Python nor the cache serve it; the graph is replayed, timed by events, and the median kept. An
operation that moves bytes is compared with a device copy that moves as many, one that multiplies with a large
product, both measured here in the same way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from twinshot_kernels.benchmark_cases import Case, cases
from twinshot_kernels.benchmark_sana import sana_cases
from twinshot_kernels.quantize_rows import quantize_rows
from twinshot_kernels.scaled_linear import scaled_linear

# More than any cache holds.
ROTATED_BYTES = 200_000_000
GRAPH_SECONDS = 2e-3
SAMPLES = 30
COMPARED_SAMPLES = 10
PRODUCT_SIDE = 8192
NO_DEVICE = "The kernels' benchmark needs a CUDA device; none is available."

Row = dict[str, Any]
Call = Callable[..., Any]
COLUMNS = ("op", "shape", "median_us", "gb_per_s", "tflop_per_s", "fraction", "reference_us", "compiled_us")


def measure_kernels(only: Sequence[str] = (), *, compiled: bool = False, samples: int = SAMPLES) -> list[Row]:
    """Measure the kernels on the current CUDA device.

    Args:
        only: operations to measure; all if empty.
        compiled: time ``torch.compile`` of plain torch too, which takes seconds a row.
        samples: graph replays that the median is taken of.

    Returns:
        Flat rows: ``benchmark``, ``op``, ``shape``, ``dtype``, ``median_us``, ``gb_per_s`` (bytes that must
        move) or ``tflop_per_s``, ``fraction`` of the copy's or the product's rate, ``bytes``, ``samples``,
        ``reference_us`` and, if asked for, ``compiled_us``.

    Raises:
        ValueError: if ``only`` names an unknown operation.
        RuntimeError: without a CUDA device.
    """
    everything = [*cases(), *sana_cases()]
    known = {case.op for case in everything}
    if unknown := sorted(set(only) - known):
        raise ValueError(f"Unknown operation {unknown[0]!r}; accepted: {', '.join(sorted(known))}.")
    if not torch.cuda.is_available():
        raise RuntimeError(NO_DEVICE)
    wanted = [case for case in everything if not only or case.op in only]
    with torch.no_grad():
        return [_row(case, samples, compiled=compiled) for case in wanted]


def median_seconds(call: Call, sets: Sequence[tuple[Any, ...]], samples: int = SAMPLES) -> float:
    """Time one call: the median of ``samples`` replays of a graph that holds many.

    Args:
        call: what is timed; no stop of the device inside.
        sets: arguments that the calls take in turn.
        samples: replays.

    Returns:
        Seconds a call.
    """
    for arguments in sets:
        call(*arguments)
    single = statistics.median(_replays(call, sets, 1, 3))
    rounds = max(1, round(GRAPH_SECONDS / (single * len(sets))))
    return statistics.median(_replays(call, sets, rounds, samples))


def _replays(call: Call, sets: Sequence[tuple[Any, ...]], rounds: int, samples: int) -> list[float]:
    graph = torch.cuda.CUDAGraph()
    # Results stay alive for a round; else all calls would write to the same memory, which the cache holds.
    results: deque[Any] = deque(maxlen=len(sets))
    with torch.cuda.graph(graph):
        for arguments in [*sets] * rounds:
            results.append(call(*arguments))
    graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    calls = len(sets) * rounds
    return [start.elapsed_time(end) / 1e3 / calls for start, end in itertools.pairwise(marks)]


def _row(case: Case, samples: int, *, compiled: bool) -> Row:
    sets = [case.make() for _ in range(_rotation(case.bytes))]
    seconds = median_seconds(case.call, sets, samples)
    row: Row = {"benchmark": "kernels", "op": case.op, "shape": case.shape, "dtype": case.dtype}
    row |= {
        "median_us": round(seconds * 1e6, 2),
        "bytes": case.bytes,
        "samples": samples,
        **_rate(case, seconds),
    }
    row["reference_us"] = round(median_seconds(case.plain, sets, COMPARED_SAMPLES) * 1e6, 2)
    if compiled:
        plain = torch.compile(case.plain, dynamic=False)
        row["compiled_us"] = round(median_seconds(plain, sets, COMPARED_SAMPLES) * 1e6, 2)
    return row


def _rate(case: Case, seconds: float) -> Row:
    if case.operations:
        rate, limit = case.operations / seconds, product_rate(case.dtype)
        return {"tflop_per_s": round(rate / 1e12, 1), "fraction": round(rate / limit, 3)}
    rate, limit = case.bytes / seconds, copy_rate(case.bytes)
    return {"gb_per_s": round(rate / 1e9, 1), "fraction": round(rate / limit, 3)}


def _rotation(moved: int) -> int:
    return max(2, -(-ROTATED_BYTES // moved))


@cache
def copy_rate(moved: int) -> float:
    """Measure bytes a second, read and written, of device copies that move ``moved`` bytes each."""
    pairs = []
    for _ in range(_rotation(moved)):
        source = torch.randint(256, (moved // 2,), dtype=torch.uint8, device="cuda")
        pairs.append((torch.empty_like(source), source))
    return moved / median_seconds(torch.Tensor.copy_, pairs)


@cache
def product_rate(dtype: str) -> float:
    """Measure operations a second of one large product, in ``bf16`` or in ``fp8`` scaled by rows."""
    side = PRODUCT_SIDE
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    if dtype == "bf16":
        return 2 * side**3 / median_seconds(torch.mm, [(a, b.t())])
    (a8, a_scale), (b8, b_scale) = quantize_rows(a), quantize_rows(b)
    return 2 * side**3 / median_seconds(scaled_linear, [(a8, a_scale, b8, b_scale.flatten())])


def table(rows: Sequence[Row]) -> str:
    """Lay rows out in columns for reading."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def main() -> None:
    """Measure, print a table, and write the rows as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="OP", help="operations to measure")
    parser.add_argument("--compile", action="store_true", help="time torch.compile of plain torch too")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="replays that the median is taken of")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the rows are written")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(NO_DEVICE)
    try:
        rows = measure_kernels(options.only, compiled=options.compile, samples=options.samples)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
