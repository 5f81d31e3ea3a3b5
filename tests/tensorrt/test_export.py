"""Exports: what cannot be written as ONNX is named, and what TensorRT wants otherwise keeps its values."""

import math
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor, nn

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.precision import Projection
from twinshot_engine.tensorrt.check import difference
from twinshot_engine.tensorrt.export import export_stage
from twinshot_engine.tensorrt.quantize import quantize_graph, quantized
from twinshot_engine.tensorrt.rules import phases
from twinshot_engine.tensorrt.stages import Buckets, Port, Stage
from twinshot_kernels import rms_norm


@torch.library.custom_op("twinshot_test::strange", mutates_args=())
def strange(x: Tensor) -> Tensor:
    """An operator that nobody but torch knows."""
    return x.clone()


@strange.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Inner(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Outer(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), Inner(function)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def stage_of(module: nn.Module, *sides: int, dtype: torch.dtype = torch.float32) -> Stage:
    port = Port("x", dtype, (None, *((side, 0) for side in sides)))
    return Stage("odd", "decoder", None, module, (port,), (Port("y", dtype, ()),), Buckets(32, 32, 2))


def test_an_operator_of_others_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(EngineFilesError, match=r"uses twinshot_test\.strange\.default in blocks\.1, "):
        export_stage(stage_of(Outer(strange), 4), tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_an_operator_of_torch_without_an_onnx_form_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(EngineFilesError, match=r"The odd uses aten\.\w*eig\w*\.default in blocks\.1"):
        export_stage(stage_of(Outer(torch.linalg.eigvalsh), 4, 4), tmp_path / "onnx")


@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (1, 1, 1, 1)])
def test_phases_are_the_transposed_convolution(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    weight, bias = torch.randn(shape[1], 6, 4, 4), torch.randn(6)
    found = nn.functional.conv2d(x, phases(weight), bias.repeat_interleave(4), padding=1)
    expected = nn.functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(nn.functional.pixel_shuffle(found, 2), expected)


def ops(graph: Path) -> list[str]:
    return [node.op_type for node in onnx.load(graph, load_external_data=False).graph.node]


def test_a_doubling_convolution_in_bf16_is_written_as_phases(tmp_path: Path) -> None:
    layer = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)
    in_fp32 = export_stage(stage_of(layer, 4, 8, 8), tmp_path / "fp32")
    in_bf16 = export_stage(stage_of(layer.bfloat16(), 4, 8, 8, dtype=torch.bfloat16), tmp_path / "bf16")
    assert ops(in_fp32) == ["ConvTranspose"]
    assert ops(in_bf16) == ["Conv", "DepthToSpace"]


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, torch.ones(64, dtype=torch.float32), 1e-6) * 2


def test_a_norm_reads_the_type_of_its_scale(tmp_path: Path) -> None:
    graph = export_stage(stage_of(Norm(), 64, dtype=torch.bfloat16), tmp_path / "onnx")
    for node in onnx_ir.load(graph).graph:
        if node.op_type == "RMSNormalization":
            assert node.inputs[0].dtype == node.inputs[1].dtype


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Projection(96, 128)
        nn.init.normal_(self.part.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def test_a_quantised_product_is_what_torch_rounds_to(tmp_path: Path) -> None:
    import onnxruntime

    stage, peaks = stage_of(Product().eval(), 5, 96), {"part.weight": 3.0}
    graph = export_stage(stage, tmp_path / "onnx", lambda graph: quantize_graph(graph, peaks))
    assert ops(graph).count("DequantizeLinear") == 2
    x = torch.randn(2, 5, 96)
    x[0, 0, 0] = 1000.0  # far beyond the peak: it is cut off
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    exact = stage.module(x)
    with quantized(stage, peaks):
        expected = stage.module(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert 1e-4 < difference(found[1], exact[1]) < 0.1
    assert torch.equal(stage.module(x), exact)


def test_differences_are_relative_and_never_hide_what_is_not_a_number() -> None:
    right = torch.tensor([1.0, -4.0])
    assert difference(right + torch.tensor([0.0, 4e-3]), right) == pytest.approx(1e-3, rel=1e-4)
    assert difference(torch.tensor([math.nan, -4.0]), right) == math.inf
    assert difference(torch.tensor([math.inf, -4.0]), right) == math.inf
    levels = torch.full((1000,), 200, dtype=torch.uint8)
    off = levels.clone()
    off[0] += 1
    assert difference(off, levels) == pytest.approx(1e-3 / 200)
    off[0] += 1
    assert difference(off, levels) == math.inf


@pytest.mark.parametrize("lengths", [(32,), (32, 64, 96), (64, 128), (70, 134, 198, 230)])
def test_every_length_that_a_tokenizer_lists_is_among_the_buckets(lengths: tuple[int, ...]) -> None:
    buckets = Buckets.of(lengths)
    made = [buckets.length(i) for i in range(buckets.amount)]
    assert set(lengths) <= set(made)
    assert (made[0], made[-1]) == (lengths[0], lengths[-1])
