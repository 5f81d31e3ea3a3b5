"""Linear attention with ReLU features: ``o_n = f(q_n) S / (f(q_n) z + 1e-15)``, ``f = relu``.

``S = sum_m f(k_m)^T v_m`` is one D x D matrix a head and ``z = sum_m f(k_m)`` its normaliser, so the cost
grows with the tokens and not with their square. Plain torch widens q, k and v to fp32, pads v with ones and
writes each product; here the first kernel sums parts of S and z over chunks of tokens, and the second adds
the parts up and multiplies. They must read q, k and v once and write one output. Measured on an H100: 8.2
and 6.3 us, both kernels, at 1024 tokens of SANA 1.6B's 70 heads of 32.

Source: Xie et al., arXiv 2410.10629 (SANA); Cai et al., arXiv 2205.14756 (EfficientViT).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton

EPS = 1e-15
TOKENS_PER_STEP = 64
TOKENS_PER_CHUNK = 256
MAX_CHUNKS = 32
LEAST = 16
NUM_WARPS = 4


def linear_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend in plain torch, in fp32; see :func:`linear_attention`."""
    q, k, v = query.float().relu(), key.float().relu(), value.float()
    state = torch.einsum("bmhd,bmhe->bhde", k, v)
    mixed = torch.einsum("bnhd,bhde->bnhe", q, state)
    weight = torch.einsum("bnhd,bhd->bnh", q, k.sum(1))
    return (mixed / (weight[..., None] + EPS)).to(query.dtype).contiguous()


@jit
def _state_kernel(
    key: tl.tensor,
    value: tl.tensor,
    state: tl.tensor,
    total: tl.tensor,
    tokens: int,
    dim: int,
    key_batch: int,
    key_token: int,
    key_head: int,
    value_batch: int,
    value_token: int,
    value_head: int,
    STEPS: tl.constexpr,
    STEP: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Sum one chunk of tokens of one head."""
    chunk, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys = key + image * key_batch + head * key_head
    values = value + image * value_batch + head * value_head
    channel = tl.arange(0, DIM)
    products = tl.zeros((DIM, DIM), tl.float32)
    weight = tl.zeros((DIM,), tl.float32)
    for step in range(STEPS):
        token = (chunk * STEPS + step) * STEP + tl.arange(0, STEP)
        row = token[:, None].to(tl.int64)
        inside = (row < tokens) & (channel[None, :] < dim)
        k = tl.load(keys + row * key_token + channel[None, :], mask=inside, other=0.0)
        v = tl.load(values + row * value_token + channel[None, :], mask=inside, other=0.0)
        k = tl.where(k > 0, k, 0.0).to(v.dtype)
        products += tl.dot(tl.trans(k), v, input_precision=PRECISION)
        weight += tl.sum(k.to(tl.float32), axis=0)
    part = (image * tl.num_programs(1) + head) * tl.num_programs(0) + chunk
    tl.store(state + part * DIM * DIM + channel[:, None] * DIM + channel[None, :], products)
    tl.store(total + part * DIM + channel, weight)


@jit
def _mix_kernel(
    query: tl.tensor,
    state: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    tokens: int,
    dim: int,
    batch_stride: int,
    token_stride: int,
    head_stride: int,
    EPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    STEP: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Multiply some queries of one head with the sum of all chunks."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    channel = tl.arange(0, DIM)
    products = tl.zeros((DIM, DIM), tl.float32)
    weight = tl.zeros((DIM,), tl.float32)
    first = (image * heads + head) * CHUNKS
    for chunk in range(CHUNKS):
        part = first + chunk
        products += tl.load(state + part * DIM * DIM + channel[:, None] * DIM + channel[None, :])
        weight += tl.load(total + part * DIM + channel)
    token = tl.program_id(0) * STEP + tl.arange(0, STEP)
    place = token[:, None].to(tl.int64) * token_stride + channel[None, :]
    inside = (token[:, None] < tokens) & (channel[None, :] < dim)
    q = tl.load(query + image * batch_stride + head * head_stride + place, mask=inside, other=0.0)
    q = tl.maximum(q.to(tl.float32), 0.0)
    mixed = tl.dot(q, products, input_precision=PRECISION)
    mixed = mixed / (tl.sum(q * weight[None, :], axis=1) + EPS)[:, None]
    row = (image * tokens + token[:, None]) * heads + head
    tl.store(out + row * dim + channel[None, :], mixed.to(out.dtype.element_ty), mask=inside)


def _launch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    batch, tokens, heads, dim = query.shape
    steps = triton.cdiv(tokens, TOKENS_PER_STEP)
    chunks = min(triton.cdiv(tokens, TOKENS_PER_CHUNK), MAX_CHUNKS)
    constants = {
        "STEP": TOKENS_PER_STEP,
        "DIM": max(LEAST, triton.next_power_of_2(dim)),
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "num_warps": NUM_WARPS,
    }
    parts = (batch, heads, chunks, constants["DIM"])
    state = torch.empty((*parts, constants["DIM"]), dtype=torch.float32, device=query.device)
    total = torch.empty(parts, dtype=torch.float32, device=query.device)
    _state_kernel[(chunks, heads, batch)](
        key,
        value,
        state,
        total,
        tokens,
        dim,
        *key.stride()[:3],
        *value.stride()[:3],
        STEPS=triton.cdiv(steps, chunks),
        **constants,
    )
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    _mix_kernel[(steps, heads, batch)](
        query, state, total, out, tokens, dim, *query.stride()[:3], EPS=EPS, CHUNKS=chunks, **constants
    )
    return out


_linear_attention = register("linear_attention", linear_attention_reference, _launch)


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Let every query attend to all keys through ReLU features.

    Args:
        query: ``[B, N, H, D]``, any floating type; may be a view of a packed projection.
        key: the same shape.
        value: the same shape.

    Returns:
        ``[B, N, H, D]`` in the type of ``query``, contiguous; sums are fp32. Where no key meets a query it
        is 0.

    Raises:
        ValueError: if the shapes differ.
    """
    if not query.shape == key.shape == value.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(f"query, key and value have shapes {shapes}; accepted: one shape.")
    if needs_gradient(query, key, value):
        return linear_attention_reference(query, key, value)
    result: Tensor = _linear_attention(query, key, value)
    return result
