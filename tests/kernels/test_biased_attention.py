"""Attention with a bias of the scores."""

from __future__ import annotations

import pytest
import torch

import twinshot_kernels as ops

PLACES = pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@PLACES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(1, 8), (17, 24), (256, 256)])
def test_a_bias_is_added_to_the_scores(place: str, dtype: torch.dtype, queries: int, keys: int) -> None:
    torch.manual_seed(0)
    # Views of a packed projection, as layers pass them.
    packed = torch.randn(2, max(queries, keys), 3, 4, 64).to(place, dtype) / 4
    query, key, value = packed.unbind(2)
    query, key, value = query[:, :queries], key[:, :keys], value[:, :keys]
    bias = torch.randn(1, 4, queries, keys).to(place, dtype)
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    exact = ((q @ k.mT + bias.double()).softmax(-1) @ v).transpose(1, 2)
    largest = exact.abs().max()
    for call in (ops.biased_attention, ops.biased_attention_reference):
        result = call(query, key, value, bias, 1.0)
        assert result.dtype == dtype
        error = (result.double() - exact).abs().max()
        assert error <= largest * (1e-5 if dtype == torch.float32 else 2e-2)
