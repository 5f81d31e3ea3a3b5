"""Attention: which kernel is chosen, what torch and FA3 bring, and our own for one wide head."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import twinshot_kernels as ops

Agree = Callable[[Tensor, Tensor, Tensor], None]
CUDA = torch.device("cuda")
chooser = importlib.import_module("twinshot_kernels.attention")
wide = importlib.import_module("twinshot_kernels.wide_attention")


def exact_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    groups = query.shape[2] // key.shape[2]
    q, k, v = query.double(), key.double(), value.double()
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / query.shape[-1] ** 0.5
    if causal:
        order = torch.arange(query.shape[1], device=query.device)
        scores[..., order[None] > order[:, None]] = -torch.inf
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[2] != key.shape[2]
    return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Pretends that a Hopper GPU is there, and FA3 too if asked for."""
    monkeypatch.delenv("TWINSHOT_ATTENTION", raising=False)

    def pretend(fa3: bool) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(chooser, "HAS_FA3", fa3)
        monkeypatch.setattr(chooser, "HAS_TRITON", True)

    return pretend


@pytest.mark.parametrize(
    ("dtype", "width", "fa3", "expected"),
    [
        (torch.bfloat16, 128, True, "fa3"),
        (torch.float16, 64, True, "fa3"),
        (torch.bfloat16, 256, True, "fa3"),
        (torch.bfloat16, 32, True, "cudnn"),
        (torch.float32, 128, True, "cudnn"),
        (torch.bfloat16, 128, False, "cudnn"),
        (torch.bfloat16, 512, True, "wide"),
        (torch.bfloat16, 384, False, "wide"),
        (torch.float16, 512, True, "sdpa"),
        (torch.float32, 512, True, "sdpa"),
        (torch.bfloat16, 288, True, "sdpa"),
        (torch.bfloat16, 576, True, "sdpa"),
    ],
)
def test_the_kernel_chosen_on_hopper(
    hopper: Callable[[bool], None], dtype: torch.dtype, width: int, fa3: bool, expected: str
) -> None:
    hopper(fa3)
    assert ops.attention_backend(dtype, width, CUDA) == expected


@pytest.mark.parametrize(
    ("wanted", "narrow", "wide"),
    [("fa3", "fa3", "wide"), ("cudnn", "cudnn", "wide"), ("sdpa", "sdpa", "sdpa")],
)
def test_the_environment_overrides(
    hopper: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, wanted: str, narrow: str, wide: str
) -> None:
    hopper(True)
    monkeypatch.setenv("TWINSHOT_ATTENTION", wanted)
    assert ops.attention_backend(torch.bfloat16, 128, CUDA) == narrow
    assert ops.attention_backend(torch.bfloat16, 512, CUDA) == wide


def test_other_devices_use_torchs_own_choice(
    hopper: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper(True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert ops.attention_backend(torch.bfloat16, 128, CUDA) == "sdpa"
    assert ops.attention_backend(torch.bfloat16, 128, torch.device("cpu")) == "sdpa"


def test_unknown_and_missing_overrides_are_refused(
    hopper: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper(False)
    query = torch.randn(1, 2, 1, 8)
    monkeypatch.setenv("TWINSHOT_ATTENTION", "flash")
    with pytest.raises(ValueError, match="TWINSHOT_ATTENTION is 'flash'; accepted: fa3, cudnn, sdpa"):
        ops.attention(query, query, query)
    monkeypatch.setenv("TWINSHOT_ATTENTION", "fa3")
    with pytest.raises(ValueError, match="fa3-fwd is not installed"):
        ops.attention(query, query, query)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "keys"), [(4, 4, 128, 77), (8, 2, 64, 129), (3, 1, 8, 129), (2, 2, 256, 1)]
)
def test_attention(
    place: str, heads: int, kv_heads: int, width: int, keys: int, causal: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    queries = keys if causal else 129
    # Views of a packed projection, as the transformer's blocks pass them.
    packed = torch.randn(2, max(queries, keys), heads + 2 * kv_heads, width).to(place, dtype)
    query, key, value = packed.split([heads, kv_heads, kv_heads], dim=2)
    query, key, value = query[:, :queries], key[:, :keys], value[:, :keys]
    exact = exact_attention(query, key, value, causal)
    for result in (
        ops.attention(query, key, value, causal=causal),
        ops.attention_reference(query, key, value, causal=causal),
    ):
        error, usual = (
            (x.double() - exact).abs().max() for x in (result, plain_attention(query, key, value, causal))
        )
        assert result.dtype == dtype
        assert error <= 2 * usual + (5e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 128), (8, 2, 64), (3, 1, 8)])
def test_keys_behind_a_length_are_not_seen(
    place: str, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, 129, heads, width).to(place, dtype)
    key, value = torch.randn(2, 3, 77, kv_heads, width).to(place, dtype)
    lengths = torch.tensor([1, 40, 77], dtype=torch.int32, device=place)
    results = [
        form(query, key, value, key_lengths=lengths) for form in (ops.attention, ops.attention_reference)
    ]
    for row, length in enumerate(lengths.tolist()):
        part = query[row : row + 1], key[row : row + 1, :length], value[row : row + 1, :length]
        exact, plain = exact_attention(*part), plain_attention(*part)
        for result in results:
            error, usual = ((x.double() - exact).abs().max() for x in (result[row : row + 1], plain))
            assert error <= 2 * usual + (5e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 128), (8, 2, 64), (3, 1, 8)])
def test_causal_queries_may_be_the_last_of_their_row(
    place: str, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 77, heads, width).to(place, dtype)
    key, value = torch.randn(2, 2, 77, kv_heads, width).to(place, dtype)
    exact, plain = (form(query, key, value, True)[:, 34:] for form in (exact_attention, plain_attention))
    for form in (ops.attention, ops.attention_reference):
        result = form(query[:, 34:], key, value, causal=True)
        error, usual = ((x.double() - exact).abs().max() for x in (result, plain))
        assert error <= 2 * usual + (5e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", ["fa3", "cudnn", "sdpa"])
def test_every_backend_agrees(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    if wanted == "fa3" and not chooser.HAS_FA3:
        pytest.skip("fa3-fwd is not installed")
    monkeypatch.setenv("TWINSHOT_ATTENTION", wanted)
    query, key, value = torch.randn(3, 2, 333, 4, 128, device="cuda", dtype=torch.bfloat16)
    exact, plain = exact_attention(query, key, value), plain_attention(query, key, value)
    error, usual = ((x.double() - exact).abs().max() for x in (ops.attention(query, key, value), plain))
    assert error <= 2 * usual + 1e-3
    lengths = torch.tensor([200, 333], dtype=torch.int32, device="cuda")
    result = ops.attention(query, key, value, key_lengths=lengths)
    first = exact_attention(query[:1], key[:1, :200], value[:1, :200])
    assert (result[1:].double() - exact[1:]).abs().max() <= 2 * usual + 1e-3
    assert (result[:1].double() - first).abs().max() <= 2 * usual + 2e-3
    last = ops.attention(query[:, 200:], key, value, causal=True)
    assert (last.double() - exact_attention(query, key, value, True)[:, 200:]).abs().max() <= 2 * usual + 2e-3


@pytest.mark.parametrize("width", [320, 384, 512])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (45, 77), (129, 64)])
def test_wide_attention(device: str, agree: Agree, width: int, queries: int, keys: int) -> None:
    query, key, value = (
        3 * torch.randn(2, count, 1, 2 * width).to(device, torch.bfloat16)[..., width:]
        for count in (queries, keys, keys)
    )
    result = ops.wide_attention(query, key, value)
    agree(result, exact_attention(query, key, value), plain_attention(query, key, value))


def test_wide_attention_in_parts(device: str, agree: Agree, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(3, 2, 45, 1, 320).to(device, torch.bfloat16)
    # Seven queries at a time, whose rows of 45 keys are padded to 48; sixteen keys at a time.
    monkeypatch.setattr(wide, "SCORE_BYTES", 7 * 2 * 48)
    monkeypatch.setattr(wide, "MAX_BLOCK", 16)
    key = key.mT.contiguous().mT
    for mixed in (value, key):
        result = ops.wide_attention(query, key, mixed)
        agree(result, exact_attention(query, key, mixed), plain_attention(query, key, mixed))


def test_wide_scores_beyond_fp16_share_the_weight(device: str) -> None:
    query = torch.full((1, 3, 1, 512), 300.0).to(device, torch.bfloat16)
    signs = torch.tensor([1.0, -1.0, 1.0], device=device)[None, :, None, None]
    value = torch.randn(1, 3, 1, 512).to(device, torch.bfloat16)
    # 300 * 300 * 512 / sqrt(512) is beyond 65504: two keys share the weight, the third gets none.
    result = ops.wide_attention(query, query * signs, value)
    shared = ((value[:, :1] + value[:, 2:]).double() / 2).expand_as(result)
    torch.testing.assert_close(result.double(), shared, rtol=1e-2, atol=1e-3)
    result = ops.wide_attention(query, -query, value).double()
    torch.testing.assert_close(
        result, value.double().mean(1, keepdim=True).expand_as(result), rtol=1e-2, atol=1e-3
    )


@pytest.mark.gpu
@pytest.mark.parametrize("width", [384, 512])
def test_wide_attention_at_full_size(width: int) -> None:
    query, key, value = torch.randn(3, 1, 4095, 1, width, device="cuda", dtype=torch.bfloat16)
    exact, plain = exact_attention(query, key, value), plain_attention(query, key, value)
    error, usual = ((x.double() - exact).norm() for x in (ops.attention(query, key, value), plain))
    assert error <= 2 * usual


def test_wide_attention_in_fp32_is_exact(device: str) -> None:
    query, key, value = torch.randn(3, 1, 33, 1, 512).to(device)
    exact = exact_attention(query, key, value)
    torch.testing.assert_close(ops.wide_attention(query, key, value).double(), exact, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    three, two = torch.randn(1, 4, 3, 8), torch.randn(1, 4, 2, 8)
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads"):
        ops.attention(three, two, two)
    with pytest.raises(ValueError, match="4 queries to 3 keys"):
        ops.attention(two, two[:, :3], two[:, :3], causal=True)
    lengths = torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="key_lengths is given together with causal"):
        ops.attention(two, two, two, causal=True, key_lengths=lengths)
    for wrong in (lengths.long(), lengths.repeat(2)):
        with pytest.raises(ValueError, match=r"accepted: torch.int32 of \(1,\)"):
            ops.attention(two, two, two, key_lengths=wrong)
    for heads, width in ((2, 512), (1, 256), (1, 330)):
        odd = torch.randn(1, 4, heads, width)
        with pytest.raises(
            ValueError, match=f"{heads} heads of {width}; accepted: one head of 320, 384, 448"
        ):
            ops.wide_attention(odd, odd, odd)
