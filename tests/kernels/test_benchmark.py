"""The kernels' benchmark: its cases on small tensors, its rows on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twinshot_kernels import benchmark, benchmark_cases, benchmark_sana

SMALL: dict[str, Any] = {
    "DEVICE": "cpu",
    "TOKENS": 6,
    "WIDTH": 48,
    "HIDDEN": 32,
    "HEADS": 3,
    "HEAD_DIM": 16,
    "TEXT_TOKENS": 5,
    "TEXT_WIDTH": 24,
    "TEXT_HIDDEN": 20,
    "TEXT_HEADS": 4,
    "TEXT_KV_HEADS": 2,
    "IMAGES": ((32, 6), (64, 3)),
    "DUAL_WIDTH": 48,
    "DUAL_HIDDEN": 40,
    "DUAL_HEADS": 2,
    "DUAL_IMAGES": ((24, 5),),
    "WIDE_TOKENS": 9,
    "WIDE_HEAD_DIMS": (320,),
}
SMALL_SANA: dict[str, Any] = {
    "DEVICE": "cpu",
    "SIDE": 4,
    "HEADS": 3,
    "HEAD_DIM": 16,
    "HIDDEN": 24,
    "IMAGES": ((16, 8), (32, 4)),
    "VIT_CHANNELS": 32,
    "VIT_SIDE": 6,
    "TEXT_TOKENS": 5,
    "PREFIX": 7,
    "TEXT_HEAD_DIM": 16,
    "TEXT_HIDDEN": 20,
}


@pytest.fixture
def small_cases(monkeypatch: pytest.MonkeyPatch) -> list[benchmark_cases.Case]:
    """Every case on small tensors."""
    for module, values in ((benchmark_cases, SMALL), (benchmark_sana, SMALL_SANA)):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    return [*benchmark_cases.cases(), *benchmark_sana.sana_cases()]


def flat(result: Any) -> Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return torch.cat([part.double().flatten() for part in parts])


def test_both_sides_of_every_case_compute_the_same(small_cases: list[benchmark_cases.Case]) -> None:
    for case in small_cases:
        torch.manual_seed(0)
        ours = flat(case.call(*case.make()))
        torch.manual_seed(0)
        theirs = flat(case.plain(*case.make()))
        assert (ours - theirs).norm() <= 0.06 * theirs.norm(), case


def test_bytes_are_those_of_inputs_and_results(small_cases: list[benchmark_cases.Case]) -> None:
    for case in small_cases:
        # These are given more than they read.
        if case.op in ("qk_norm_rotary", "joint_norm_rotary", "scaled_linear"):
            continue
        arguments = case.make()
        results = case.call(*arguments)
        tensors = [*arguments, *(results if isinstance(results, tuple) else [results])]
        # Vectors, scales and statistics are too small to count; group norms read their input twice.
        moved = sum(x.nbytes for x in tensors if isinstance(x, Tensor) and x.dtype != torch.float32)
        again = arguments[0].nbytes if case.op.startswith("group_norm_silu") else 0
        assert case.bytes == moved + again, case


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown operation 'softmax'; accepted: attention, bias_"):
        benchmark.measure_kernels(["softmax"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so() -> None:
    command = [sys.executable, "-P", "-m", "twinshot_kernels.benchmark"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_has_a_column_for_what_was_measured() -> None:
    rows = [
        {"op": "a", "shape": "2x3", "median_us": 1.5, "gb_per_s": 10.0, "fraction": 0.9},
        {"op": "long_name", "shape": "4", "median_us": 20.25, "tflop_per_s": 7.0, "fraction": 0.5},
    ]
    lines = benchmark.table(rows).splitlines()
    assert lines[0].split() == ["op", "shape", "median_us", "gb_per_s", "tflop_per_s", "fraction"]
    assert lines[1].split() == ["a", "2x3", "1.5", "10.0", "0.9"]
    assert lines[2].index("20.25") == lines[0].index("median_us")


@pytest.mark.gpu
def test_rows_on_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [
        sys.executable,
        "-P",
        "-m",
        "twinshot_kernels.benchmark",
        "--json",
        str(file),
        "--samples",
        "3",
    ]
    subprocess.run([*command, "--only", "rms_norm", "scaled_linear"], check=True)
    rows = json.loads(file.read_text())
    assert [row["op"] for row in rows] == ["rms_norm"] * 2 + ["scaled_linear"] * 3
    for row in rows:
        assert row["benchmark"] == "kernels"
        assert row["median_us"] > 0
        assert row["reference_us"] > 0
        assert 0 < row["fraction"] < 2
        assert ("gb_per_s" in row) != ("tflop_per_s" in row)
