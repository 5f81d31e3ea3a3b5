"""`twinshot build`: usage errors, missing packages, and what is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twinshot_engine.tensorrt import build as module
from twinshot_engine.tensorrt.manifest import EngineFacts, Manifest, TensorFacts
from twinshot_server.cli import app

ENGINE = EngineFacts(
    file="decoder-256x256.engine",
    stage="decoder",
    size=(256, 256),
    bytes=2_000_000,
    sha256="ab" * 32,
    inputs=(TensorFacts("latents", "float32", (-1, 8, 32, 32), (((1, 8, 32, 32),) * 3,)),),
    outputs=(TensorFacts("images", "uint8", (-1, 256, 256, 3)),),
    onnx_error=1e-6,
    precision_error=None,
    export_seconds=12.0,
    build_seconds=3.0,
)
MANIFEST = Manifest(
    checkpoint="builtin",
    fingerprint="ab" * 32,
    family="ZImagePipeline",
    precision="bf16",
    targets=("sm_89", "sm_120"),
    library="tensorrt_rtx",
    library_version="1.7.1.116",
    sizes=((256, 256),),
    batch_sizes=(1, 2),
    tokens=(32, 64),
    versions={"torch": "2.11.0"},
    engines=(ENGINE,),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command has asked to be built; nothing is."""
    orders: list[Any] = []

    def build(order: Any, report: Callable[[str, float], None]) -> Manifest:
        report("text: export", 0.5)
        orders.append(order)
        return MANIFEST

    monkeypatch.setattr(module, "build", build)
    return orders


def test_options_reach_the_build(runner: CliRunner, asked: list[Any]) -> None:
    line = "build -o out --sizes 256x256,512x512 --batch 1,4 --precision fp8 --target sm_89,sm_120 --no-check"
    result = runner.invoke(app, [*line.split(), "--library", "tensorrt-rtx", "--keep-onnx"])
    assert result.exit_code == 0, result.output
    order = asked[0]
    assert (order.checkpoint, order.folder, order.sizes) == ("builtin", Path("out"), ((256, 256), (512, 512)))
    assert (order.batch_sizes, order.precision, order.targets) == ((1, 4), "fp8", ("sm_89", "sm_120"))
    assert (order.library, order.check, order.keep_onnx) == ("tensorrt_rtx", False, True)


def test_what_was_built_is_printed(runner: CliRunner, asked: list[Any]) -> None:
    lines = runner.invoke(app, ["build"]).stdout.splitlines()
    assert lines[0] == "tensorrt_rtx 1.7.1.116, bf16, for sm_89, sm_120"
    assert lines[2].startswith(
        "decoder-256x256.engine  2.0 MB  exported in 12 s, built in 3 s  latents [-1, 8, 32"
    )
    assert asked[0].targets == ()


def test_json_is_the_manifest(runner: CliRunner, asked: list[Any]) -> None:
    assert json.loads(runner.invoke(app, ["build", "--json"]).stdout)["engines"][0]["bytes"] == 2_000_000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--batch", "one"], "'one' is not understood; accepted: a list such as 1,2,4"),
        (["--target", "ada"], "'ada' is not understood; accepted: a list such as sm_89,sm_120"),
        (["--batch", "2"], "are not whole numbers from 1 to 16, 1 among them"),
        (["--precision", "int4"], "'int4' is not one of"),
    ],
)
def test_usage_errors_are_sentences(
    runner: CliRunner, asked: list[Any], options: list[str], sentence: str
) -> None:
    result = runner.invoke(app, ["build", *options])
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.replace("│", " ").split())
    assert not asked


def test_a_missing_package_is_named_with_what_installs_it(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("twinshot_engine.tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    result = runner.invoke(app, ["build"])
    assert result.exit_code == 2
    assert "onnx_ir is not installed: pip install 'twinshot-server[export]' installs it." in result.stderr


def test_inspect_verifies_a_folder_of_engines(runner: CliRunner, tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    result = runner.invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 2
    assert "decoder-256x256.engine' cannot be read" in result.stderr
