"""Two streams' packed projections in one buffer, their queries and keys normalised on the way.

For each head of q and k: ``h = x / sqrt(mean(x^2) + eps) * scale``, with scales of the stream's own. Joint
attention reads the tokens of both streams side by side. Plain torch moves 78 tensors the size of ``q`` for
norms and concatenation in SD3.5's blocks; here it is six: q, k and v are read from the projections and
written where attention reads them, ``[B, N + M, 3, H, D]``.

Measured: see benchmarks/results (kernels).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinshot_kernels._dispatch import needs_gradient, register
from twinshot_kernels._triton import jit, tl, triton
from twinshot_kernels.rms_norm import normalise

# Heads of one token that a program normalises.
HEADS_PER_PROGRAM = 32
NUM_WARPS = 4


def _normed(qkv: Tensor, q_scale: Tensor | None, k_scale: Tensor | None, eps: float, heads: int) -> Tensor:
    packed = torch.unflatten(qkv, -1, (3, heads, -1))
    if q_scale is None or k_scale is None:
        return packed
    q, k, v = packed.unbind(-3)
    q, k = (normalise(x, scale, eps).to(qkv.dtype) for x, scale in ((q, q_scale), (k, k_scale)))
    return torch.stack((q, k, v), dim=-3)


def joint_qk_norm_reference(
    first: Tensor,
    second: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    second_q_scale: Tensor | None,
    second_k_scale: Tensor | None,
    eps: float,
    heads: int,
) -> Tensor:
    """Normalise and join in plain torch: ``[B, N + M, 3, heads, D]``; see :func:`joint_qk_norm`."""
    packed = _normed(first, q_scale, k_scale, eps, heads)
    if second is None:
        return packed.clone(memory_format=torch.contiguous_format)
    beside = _normed(second, second_q_scale, second_k_scale, eps, heads)
    return torch.cat((packed, beside), dim=1).contiguous()


@jit
def _joint_qk_norm_kernel(
    first: tl.tensor,
    second: tl.tensor,
    out: tl.tensor,
    q_scale: tl.tensor | None,
    k_scale: tl.tensor | None,
    second_q_scale: tl.tensor | None,
    second_k_scale: tl.tensor | None,
    first_tokens: int,
    second_tokens: int,
    size: int,
    heads: int,
    eps: float,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    channel = tl.arange(0, SIZE)[None, :]
    tokens = first_tokens + second_tokens
    image, token = row // tokens, row % tokens
    inside = (head < 3 * heads) & (channel < size)
    place = head * size + channel
    width = 3 * heads * size
    if token < first_tokens:
        x = tl.load(first + (image * first_tokens + token) * width + place, mask=inside, other=0.0)
    else:
        behind = image * second_tokens + token - first_tokens
        x = tl.load(second + behind * width + place, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    if q_scale is not None:
        here = channel < size
        if token < first_tokens:
            of_q = tl.load(q_scale + channel, mask=here, other=0.0).to(tl.float32)
            of_k = tl.load(k_scale + channel, mask=here, other=0.0).to(tl.float32)
        else:
            of_q = tl.load(second_q_scale + channel, mask=here, other=0.0).to(tl.float32)
            of_k = tl.load(second_k_scale + channel, mask=here, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / size + eps)
        normed = wide * inverse * tl.where(head < heads, of_q, of_k)
        wide = tl.where(head < 2 * heads, normed, wide)
    tl.store(out + row * width + place, wide.to(out.dtype.element_ty), mask=inside)


def _launch(
    first: Tensor,
    second: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    second_q_scale: Tensor | None,
    second_k_scale: Tensor | None,
    eps: float,
    heads: int,
) -> Tensor:
    images, tokens, width = first.shape
    more = 0 if second is None else second.shape[1]
    size = width // heads // 3
    out = torch.empty(images, tokens + more, 3, heads, size, dtype=first.dtype, device=first.device)
    own = [None if scale is None else scale.contiguous() for scale in (q_scale, k_scale)]
    beside = [None if scale is None else scale.contiguous() for scale in (second_q_scale, second_k_scale)]
    _joint_qk_norm_kernel[(images * (tokens + more), triton.cdiv(3 * heads, HEADS_PER_PROGRAM))](
        first.contiguous(),
        (first if second is None else second).contiguous(),
        out,
        *own,
        *(own if second is None else beside),
        tokens,
        more,
        size,
        heads,
        eps,
        HEADS=HEADS_PER_PROGRAM,
        SIZE=triton.next_power_of_2(size),
        num_warps=NUM_WARPS,
    )
    return out


_joint_qk_norm = register("joint_qk_norm", joint_qk_norm_reference, _launch)


def _check(first: Tensor, second: Tensor | None, scales: tuple[Tensor | None, ...], heads: int) -> None:
    if first.shape[-1] % (3 * heads):
        raise ValueError(f"A projection of width {first.shape[-1]} is not 3 x {heads} heads.")
    if second is not None and (second.shape[0], second.shape[2]) != (first.shape[0], first.shape[2]):
        raise ValueError(
            f"The second projection has shape {tuple(second.shape)}; accepted beside {tuple(first.shape)}: "
            f"[{first.shape[0]}, M, {first.shape[2]}]."
        )
    given = scales if second is not None else scales[:2]
    if any(scale is None for scale in given) and any(scale is not None for scale in given):
        raise ValueError("Some scales are given and some are not; accepted: all of them, or none.")


def joint_qk_norm(
    first: Tensor,
    second: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    second_q_scale: Tensor | None,
    second_k_scale: Tensor | None,
    eps: float,
    *,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the queries and keys of one or two packed projections and join their tokens.

    Args:
        first: ``[B, N, 3 * heads * D]``: queries, keys, values.
        second: ``[B, M, 3 * heads * D]``, whose tokens come behind; None for none.
        q_scale: ``[D]`` of the first's queries; None for no norm at all.
        k_scale: likewise of its keys.
        second_q_scale: of the second's queries.
        second_k_scale: of the second's keys.
        eps: added to the mean square.
        heads: of each stream.

    Returns:
        q, k and v ``[B, N + M, heads, D]``, views of one buffer; arithmetic is fp32.

    Raises:
        ValueError: if the shapes do not fit, or just some scales are given.
    """
    scales = (q_scale, k_scale, second_q_scale, second_k_scale)
    _check(first, second, scales, heads)
    if needs_gradient(first, second, *scales):
        packed = joint_qk_norm_reference(first, second, *scales, eps, heads)
    else:
        packed = _joint_qk_norm(first, second, *scales, eps, heads)
    q, k, v = packed.unbind(2)
    return q, k, v
