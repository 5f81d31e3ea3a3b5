"""Kernels of SANA: its attention, its images between convolutions, and Gemma's attention and activation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import twinshot_kernels as ops

EPS = 1e-5
Agree = Callable[[Tensor, Tensor, Tensor], None]
Rows = Callable[..., Tensor]

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
LAYOUTS = pytest.mark.parametrize("layout", ["whole", "slice", "spread"])
# The interpreter multiplies the bits of bf16 as integers.
HALF = {"interpreter": torch.float16, "reference": torch.bfloat16, "cuda": torch.bfloat16}
# Smaller than what one program does, more than one, and with columns and channels left over.
IMAGES = pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 3, 11, 24), (1, 9, 5, 136), (1, 17, 19, 8)])


@pytest.fixture(params=["fp32", "half"])
def dtype(request: pytest.FixtureRequest, implementation: str) -> torch.dtype:
    """Types that a kernel with a product in it is tried in."""
    return torch.float32 if request.param == "fp32" else HALF[implementation]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    """A depthwise convolution, neighbour by neighbour."""
    side = int(len(taps) ** 0.5)
    height, width = x.shape[1:3]
    reach = side // 2
    padded = functional.pad(x, (0, 0, reach, reach, reach, reach))
    return sum(
        padded[:, i : i + height, j : j + width] * taps[side * i + j]
        for i in range(side)
        for j in range(side)
    )


def mix_linearly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every weight of every pair, in the type of the inputs."""
    weights = torch.einsum("bnhd,bmhd->bhnm", query.relu(), key.relu())
    shares = weights / (weights.sum(-1, keepdim=True) + 1e-15)
    return torch.einsum("bhnm,bmhd->bnhd", shares, value)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (2, 70, 3, 32), (1, 600, 2, 24)])
def test_linear_attention(device: str, agree: Agree, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    batch, tokens, heads, dim = shape
    packed = torch.randn(batch, tokens, heads, 3, dim).to(device, dtype)
    query, key, value = packed.unbind(-2)
    result = ops.linear_attention(query, key, value)
    assert result.is_contiguous()
    agree(result, mix_linearly(*(x.double() for x in (query, key, value))), mix_linearly(query, key, value))


def test_linear_attention_takes_tensors_of_different_strides(device: str, agree: Agree) -> None:
    query, key = torch.randn(2, 9, 3, 16).to(device), torch.randn(2, 3, 9, 16).to(device).transpose(1, 2)
    value = torch.randn(2, 9, 3, 32).to(device)[..., ::2]
    exact = mix_linearly(query.double(), key.double(), value.double())
    agree(ops.linear_attention(query, key, value), exact, mix_linearly(query, key, value))


def test_a_query_that_meets_no_key_mixes_nothing(device: str) -> None:
    query, key = torch.ones(1, 4, 1, 16).to(device), -torch.ones(1, 4, 1, 16).to(device)
    assert not ops.linear_attention(query, key, query).any()


@DTYPES
@IMAGES
def test_depthwise_glu(device: str, agree: Agree, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(device, dtype)
    taps, bias = (torch.randn(*size, shape[-1]).to(device, dtype) for size in ((9,), ()))

    def gated(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        up, gate = (convolve(silu(x), taps) + bias).chunk(2, dim=-1)
        return up * silu(gate)

    result = ops.depthwise_glu(x, taps, bias)
    assert result.is_contiguous()
    agree(result, gated(x.double(), taps.double(), bias.double()), gated(x, taps, bias))


@pytest.mark.parametrize(
    ("side", "dim", "shape"),
    [(1, 8, (1, 3, 2)), (3, 8, (1, 1, 1)), (3, 8, (1, 17, 18)), (5, 24, (2, 5, 7)), (5, 32, (1, 3, 18))],
)
def test_depthwise_mix(
    device: str, agree: Agree, dtype: torch.dtype, side: int, dim: int, shape: tuple[int, ...]
) -> None:
    x = torch.randn(*shape, 3 * dim).to(device, dtype)
    taps, mix = (
        torch.randn(side * side, 3 * dim).to(device, dtype),
        torch.randn(3, dim, dim).to(device, dtype),
    )

    def mixed(x: Tensor, taps: Tensor, mix: Tensor) -> Tensor:
        groups = convolve(x, taps).split(dim, dim=-1)
        return torch.cat([x, *(group @ matrix.T for group, matrix in zip(groups, mix, strict=True))], -1)

    exact = mixed(x.double(), taps.double(), mix.double())
    agree(ops.depthwise_mix(x, taps, mix), exact, mixed(x, taps, mix))


@DTYPES
@LAYOUTS
def test_geglu(rows: Rows, agree: Agree, dtype: torch.dtype, layout: str) -> None:
    gate, up = rows(layout, 2, 3, 123, dtype=dtype), rows(layout, 2, 3, 123, dtype=dtype)

    def gated(gate: Tensor, up: Tensor) -> Tensor:
        inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        return gate / 2 * (1 + inner.tanh()) * up

    agree(ops.geglu(gate, up), gated(gate.double(), up.double()), gated(gate, up))


def test_geglu_fp8(rows: Rows, agree_fp8: Agree) -> None:
    gate, up = rows("slice", 2, 3, 144), rows("slice", 2, 3, 144)
    exact = functional.gelu(gate.double(), approximate="tanh") * up.double()
    agree_fp8(*ops.geglu_fp8(gate, up), exact)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("images", [None, 1, 2])
def test_gated_residual(
    rows: Rows, agree: Agree, dtype: torch.dtype, layout: str, images: int | None
) -> None:
    x, branch = rows(layout, 2, 3, 123, dtype=dtype), rows(layout, 2, 3, 123, dtype=dtype)
    gain = rows("whole", 123) if images is None else rows("slice", images, 1, 123)
    exact = x.double() + branch.double() * gain.double()
    agree(ops.gated_residual(x, branch, gain), exact, x + branch * gain.to(dtype))


@DTYPES
@LAYOUTS
def test_bias_silu(rows: Rows, agree: Agree, dtype: torch.dtype, layout: str) -> None:
    x, bias = rows(layout, 2, 5, 7, 40, dtype=dtype), rows("whole", 40)
    agree(ops.bias_silu(x, bias), silu(x.double() + bias.double()), silu(x + bias.to(dtype)))


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("added", [False, True])
def test_pixel_norm(rows: Rows, agree: Agree, dtype: torch.dtype, layout: str, added: bool) -> None:
    x, other = rows(layout, 2, 5, 7, 40, dtype=dtype), rows(layout, 2, 5, 7, 40, dtype=dtype)
    weight, bias = rows("whole", 40), rows("whole", 40)
    result = ops.pixel_norm(x, weight, bias, EPS, residual=other if added else None)
    exact = pixel_norm(x.double(), weight.double(), bias.double()) + added * other.double()
    agree(result, exact, pixel_norm(x, weight.to(dtype), bias.to(dtype)) + added * other)


def test_pixel_norm_writes_where_it_is_told_to(rows: Rows) -> None:
    x, vector = rows("whole", 2, 7, 40), rows("whole", 40)
    whole = torch.zeros(4, 7, 40, device=x.device)
    assert ops.pixel_norm(x, vector, vector, EPS, out=whole[1:3]).data_ptr() == whole[1].data_ptr()
    assert torch.equal(whole[1:3], ops.pixel_norm(x, vector, vector, EPS))
    assert not whole[::3].any()


def test_pixel_norm_taps_are_those_of_a_convolution(device: str, agree: Agree, dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 9, 40).to(device, dtype)
    weight, bias = torch.randn(40).to(device), torch.randn(40).to(device)
    kernel = torch.randn(3, 40, 3, 3).to(device, dtype)
    taps = functional.pad(kernel.permute(1, 2, 3, 0).flatten(1), (0, 5))
    products = ops.pixel_norm_taps(x, weight, bias, taps, EPS)
    assert products.dtype == (torch.float16 if dtype == torch.bfloat16 else dtype)
    active = pixel_norm(x.double(), weight.double(), bias.double()).relu()
    plain = pixel_norm(x, weight.to(dtype), bias.to(dtype)).relu() @ taps
    agree(products, active @ taps.double(), plain.to(products.dtype))
    if dtype == torch.float32:
        convolved = functional.conv2d(active.permute(0, 3, 1, 2), kernel.double(), padding=1)
        torch.testing.assert_close(ops.sum_taps(products, 3).double(), convolved, rtol=1e-4, atol=1e-4)


@DTYPES
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("channels", "made"), [(8, 8), (16, 8), (24, 6)])
def test_upsample_shortcut(
    device: str, agree: Agree, dtype: torch.dtype, shuffled: bool, channels: int, made: int
) -> None:
    x = torch.randn(2, 3, 5, channels).to(device, dtype)
    size = (2, 6, 10, made) if shuffled else (2, 3, 5, 4 * made)
    u, bias = torch.randn(size).to(device, dtype), torch.randn(size[-1]).to(device)
    result = ops.upsample_shortcut(u, bias, x, shuffled=shuffled)

    def added(u: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        out = torch.zeros(2, 6, 10, made, dtype=u.dtype, device=u.device)
        for place in range(4 * made):
            c, i, j = place // 4, place // 2 % 2, place % 2
            main = u[:, i::2, j::2, c] + bias[c] if shuffled else u[..., place] + bias[place]
            out[:, i::2, j::2, c] = main + x[..., place // (4 * made // channels)]
        return out

    agree(result, added(u.double(), bias.double(), x.double()), added(u, bias.to(dtype), x))


def capped(query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], window: int) -> Tensor:
    """One query after another."""
    groups = query.shape[2] // key.shape[2]
    out = torch.empty_like(query)
    for row in range(len(query)):
        keys, values = (torch.cat((p, own[row])) for p, own in zip(prefix, (key, value), strict=True))
        for token in range(query.shape[1]):
            last = len(prefix[0]) + token + 1
            seen = slice(max(0, last - window), last)
            for head in range(query.shape[2]):
                scores = keys[seen, head // groups] @ query[row, token, head] * 0.3
                share = (2 * (scores / 2).tanh()).softmax(0)
                out[row, token, head] = share @ values[seen, head // groups]
    return out


@pytest.mark.parametrize("front", [0, 5, 40])
@pytest.mark.parametrize("window", [3, 1000])
def test_capped_attention(device: str, agree: Agree, dtype: torch.dtype, front: int, window: int) -> None:
    tokens, heads, shared, dim = 37, 4, 2, 24
    packed = torch.randn(2, tokens, heads + 2 * shared, dim).to(device, dtype)
    query, key, value = packed.split([heads, shared, shared], dim=2)
    prefix = tuple(torch.randn(front, shared, dim).to(device, dtype) for _ in range(2))
    result = ops.capped_attention(query, key, value, *prefix, scale=0.3, cap=2.0, window=window)
    doubled = tuple(x.double() for x in prefix)
    exact = capped(query.double(), key.double(), value.double(), doubled, window)
    agree(result, exact, capped(query, key, value, prefix, window))


@DTYPES
@LAYOUTS
def test_layer_norm(rows: Rows, agree: Agree, dtype: torch.dtype, layout: str) -> None:
    x, scale, shift = rows(layout, 2, 3, 123, dtype=dtype), rows("whole", 123), rows("whole", 123)

    def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        away = x - x.mean(-1, keepdim=True)
        return away / (away.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale + shift

    exact = normed(x.double(), scale.double(), shift.double())
    agree(ops.layer_norm(x, scale, shift, EPS), exact, normed(x, scale.to(dtype), shift.to(dtype)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: ops.linear_attention(x, x, x[:, :1]), "accepted: one shape"),
        (lambda x: ops.depthwise_glu(x, x[0, 0], x[0, 0, 0]), r"accepted: \[B, H, W, 2C\]"),
        (lambda x: ops.depthwise_mix(x, x[0, 0], x[0]), "with an odd K"),
        (lambda x: ops.geglu(x, x[:, :1]), "up has shape"),
        (lambda x: ops.gated_residual(x, x[:, :1], x[0, 0, 0]), "branch has shape"),
        (lambda x: ops.embed_rows(x, x[0, 0, 0].long()), "table has shape"),
        (lambda x: ops.bias_silu(x, x[0, 0, 0, 1:]), "bias has shape"),
        (lambda x: ops.pixel_norm(x, x[0, 0, 0, 1:], x[0, 0, 0], EPS), "weight has shape"),
        (lambda x: ops.pixel_norm(x, x[0, 0, 0], x[0, 0, 0], EPS, residual=x[0]), "residual has shape"),
        (lambda x: ops.pixel_norm(x, x[0, 0, 0], x[0, 0, 0], EPS, out=x[0]), "out is torch.float32"),
        (
            lambda x: ops.pixel_norm(x, x[0, 0, 0], x[0, 0, 0], EPS, out=x.mT.contiguous().mT),
            "accepted: contiguous",
        ),
        (lambda x: ops.pixel_norm_taps(x, x[0, 0, 0], x[0, 0, 0], x[0, 0, 1:], EPS), "taps have shape"),
        (lambda x: ops.upsample_shortcut(x, x[0, 0, 0], x, shuffled=True), "is not what"),
        (lambda x: ops.capped_attention(x, x, x, x, x, scale=1, cap=1, window=1), "accepted"),
        (lambda x: ops.capped_attention(x, x, x, x[0], x[0], scale=1, cap=0, window=1), "not both positive"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(torch.randn(2, 4, 4, 8))


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (2, 7)])
def test_embed_rows(device: str, agree: Agree, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    table, ids = torch.randn(50, 123).to(device, dtype), torch.randint(50, shape).to(device)
    agree(ops.embed_rows(table, ids, 7.3), table[ids].double() * 7.3, table[ids] * 7.3)


@pytest.mark.gpu
def test_embed_rows_reads_pinned_host_memory() -> None:
    table, ids = torch.randn(50, 123).pin_memory(), torch.randint(50, (2, 7))
    assert torch.equal(ops.embed_rows(table, ids.cuda(), 2.0).cpu(), table[ids] * 2)
