"""What tests of TensorRT build: the built-in checkpoint, for a GPU that nobody has."""

from pathlib import Path
from typing import Any

from twinshot_engine.tensorrt.build import BuildConfig

GPU = "sm_89"
SIZE = (256, 256)


def real_order(folder: Path, **more: Any) -> BuildConfig:
    """What TensorRT for RTX is asked to build; in fp32, which onnxruntime computes on a CPU too."""
    wanted: dict[str, Any] = {"targets": (GPU, "sm_120"), "library": "tensorrt_rtx", **more}
    return BuildConfig("builtin", folder, batch_sizes=(1, 2), precision="fp32", keep_onnx=True, **wanted)


def fake_order(folder: Path, **more: Any) -> BuildConfig:
    """What the fake is asked to build."""
    return real_order(folder, targets=(), **{"library": "tensorrt", **more})


def quiet(_what: str, _done: float) -> None:
    """Report to nobody."""
