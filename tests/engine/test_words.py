"""Tables of words give what torch's embeddings give, and lie in host memory beside a module on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from twinshot_engine.config import EngineConfig
from twinshot_engine.engine import Engine
from twinshot_engine.text.words import WordTable
from twinshot_engine.types import GenerateRequest

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture
def table() -> WordTable:
    torch.manual_seed(0)
    return WordTable(50, 123).requires_grad_(requires_grad=False)


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (2, 7)])
def test_rows_are_those_of_the_table_to_the_bit(
    table: WordTable, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    ids = torch.randint(50, shape)
    assert table.to(dtype).weight.dtype == dtype
    assert torch.equal(table(ids), table.weight[ids])
    assert torch.equal(table(ids, 7.25), (table.weight[ids].double() * 7.25).to(dtype))


def test_it_is_stored_like_an_embedding(table: WordTable) -> None:
    plain = nn.Embedding(50, 123)
    plain.load_state_dict(table.state_dict())
    assert torch.equal(plain.weight, table.weight)


def test_without_memory_it_has_a_type_alone() -> None:
    with torch.device("meta"):
        table = WordTable(50, 123).to(torch.bfloat16)
    assert (table.weight.is_meta, table.weight.dtype) == (True, torch.bfloat16)
    table.to_empty(device="cpu")
    assert (table.weight.device.type, table.weight.dtype) == ("cpu", torch.bfloat16)


@pytest.mark.gpu
@DTYPES
def test_a_gpu_reads_it_on_the_host(table: WordTable, dtype: torch.dtype) -> None:
    expected, ids = table.weight.to(dtype), torch.randint(50, (2, 7))
    moved = table.to("cuda", dtype)
    assert moved.weight.is_pinned()
    assert torch.equal(moved(ids.cuda()).cpu(), expected[ids])
    with torch.device("meta"):
        empty = WordTable(50, 123)
    assert empty.to_empty(device="cuda").weight.is_pinned()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_an_engine_keeps_it_on_the_host(tiny: Path, backend: str) -> None:
    engine = Engine.load(EngineConfig(str(tiny), "cuda", "fp32", backend=backend, sizes=((256, 256),)))
    engine.warm()
    (words,) = (part for part in engine.model.parts["text"].modules() if isinstance(part, WordTable))
    assert words.weight.is_pinned()
    requests = [GenerateRequest("a red apple", seed=1), GenerateRequest("two blue vases", seed=2)]
    expected = Engine.load(EngineConfig(str(tiny), "cpu")).latents(requests)
    assert (engine.latents(requests).cpu() - expected).norm() < 1e-4 * expected.norm()
