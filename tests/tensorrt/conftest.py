"""Engines of the built-in checkpoint, really built, and built again by a fake TensorRT that can run them."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_tensorrt
import pytest
import torch
from building import GPU, fake_order, quiet, real_order

from twinshot_engine.tensorrt import targets
from twinshot_engine.tensorrt.build import build

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def really_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that TensorRT for RTX built, beside the ONNX files that were checked; do not change them."""
    pytest.importorskip("tensorrt_rtx_bindings")
    folder = tmp_path_factory.mktemp("engines")
    build(real_order(folder), quiet)
    return folder


@pytest.fixture(scope="session")
def fake_library() -> Iterator[None]:
    """A fake TensorRT is installed, and this machine passes for one with a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", fake_tensorrt)
        patch.setattr(targets, "current_target", lambda _device: GPU)
        yield


@pytest.fixture(scope="session")
def built(really_built: Path, fake_library: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that the fake built of the same ONNX files; do not change them."""
    folder = tmp_path_factory.mktemp("fake") / "engines"
    shutil.copytree(really_built, folder)
    build(fake_order(folder), quiet)
    return folder


@pytest.fixture
def engines(built: Path, tmp_path: Path) -> Path:
    """Engines of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "engines"))


@pytest.fixture(autouse=True)
def nothing_refused() -> Iterator[None]:
    """Every test starts with a fake that does all it is asked for."""
    yield
    fake_tensorrt.refused.clear()
