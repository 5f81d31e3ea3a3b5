"""Scaled dot-product attention: ``softmax(q k^T / sqrt(D)) v``, of all keys, a count of them, or causal.

The one place where an attention kernel is chosen. Padding is a learned token, lies behind every token a
causal row reads, or stands last and is hidden by a count of keys on the device: no model needs another mask.

| choice | when |
|---|---|
| ``fa3`` | Hopper, 16 bit, 64 <= D <= 256, the package ``fa3-fwd`` installed, no gradient |
| ``cudnn`` | Hopper, other D <= 256: torch's SDPA with cuDNN first |
| ``wide`` | Hopper, bf16, one head of 320 to 512, Triton installed, no gradient: two products in fp16 |
| ``sdpa`` | everything else: torch's SDPA with its own order |

The environment variable ``TWINSHOT_ATTENTION`` (``fa3``, ``cudnn`` or ``sdpa``) overrides the first two;
``sdpa`` also turns ``wide`` off. FA3 takes counts of keys, and queries that are the last of a causal row, as
they are; torch's SDPA needs a mask made for both.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from twinshot_kernels._dispatch import needs_gradient
from twinshot_kernels._triton import HAS_TRITON
from twinshot_kernels.wide_attention import WIDE_HEAD_DIMS, wide_attention

OVERRIDE = "TWINSHOT_ATTENTION"
CHOICES = ("fa3", "cudnn", "sdpa")
FLASH_HEAD_DIMS = range(64, 257)
HOPPER = 9
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
HAS_FA3 = importlib.util.find_spec("fa3_fwd_interface") is not None


def attention_reference(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, key_lengths: Tensor | None = None
) -> Tensor:
    """Attend by the formula, in fp32, keeping the whole score matrix; see :func:`attention`."""
    groups = query.shape[2] // key.shape[2]
    q, k, v = (x.float().transpose(1, 2) for x in (query, key, value))
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * query.shape[-1] ** -0.5
    seen = _seen_keys(query, key, causal=causal, key_lengths=key_lengths)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed.transpose(1, 2).to(query.dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def attention_backend(dtype: torch.dtype, head_dim: int, device: torch.device) -> str:
    """Name the kernel that :func:`attention` takes for a call without gradients.

    Args:
        dtype: type of the queries.
        head_dim: D.
        device: where they are.

    Returns:
        ``fa3``, ``cudnn``, ``wide`` or ``sdpa``.

    Raises:
        ValueError: if ``TWINSHOT_ATTENTION`` is set to an unknown name, or to ``fa3`` where that is missing.
    """
    wanted = _override()
    if device.type != "cuda" or wanted == "sdpa":
        return "sdpa"
    if torch.cuda.get_device_capability(device)[0] != HOPPER:
        return "cudnn" if wanted == "cudnn" else "sdpa"
    half = dtype in (torch.bfloat16, torch.float16)
    if head_dim > max(FLASH_HEAD_DIMS):
        # Scores in fp16 are exact enough beside bf16's rounding, and not beside fp16's own.
        wide = dtype == torch.bfloat16 and head_dim in WIDE_HEAD_DIMS and HAS_TRITON
        return "wide" if wide else "sdpa"
    flash = half and head_dim in FLASH_HEAD_DIMS and HAS_FA3
    return "fa3" if flash and wanted != "cudnn" else "cudnn"


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, key_lengths: Tensor | None = None
) -> Tensor:
    """Let every query attend to the keys of its row: all, the first few, or those up to its own position.

    Args:
        query: ``[B, N, H, D]``.
        key: ``[B, M, Hkv, D]``, Hkv dividing H: each key head serves H / Hkv query heads.
        value: ``[B, M, Hkv, D]``.
        causal: hide later keys; queries are the last N of the M positions.
        key_lengths: ``[B]`` int32 on the device of ``query``, 1 to M: keys from there on are hidden. Not
            together with ``causal``.

    Returns:
        ``[B, N, H, D]`` in the type of ``query``.

    Raises:
        ValueError: if the arguments do not fit, or as :func:`attention_backend` says.
    """
    _check(query, key, causal=causal, key_lengths=key_lengths)
    backend = attention_backend(query.dtype, query.shape[-1], query.device)
    masked = causal or key_lengths is not None
    forward_only = backend == "fa3" or (backend == "wide" and query.shape[2] == 1 and not masked)
    if forward_only and not needs_gradient(query, key, value):
        if backend == "wide":
            return wide_attention(query, key, value)
        return _flash3(query, key, value, causal=causal, key_lengths=key_lengths)
    if backend in ("fa3", "cudnn"):
        with sdpa_kernel(CUDNN_FIRST, set_priority=True):
            return _sdpa(query, key, value, causal=causal, key_lengths=key_lengths)
    return _sdpa(query, key, value, causal=causal, key_lengths=key_lengths)


def _override() -> str | None:
    wanted = os.environ.get(OVERRIDE)
    if wanted is not None and wanted not in CHOICES:
        raise ValueError(f"{OVERRIDE} is {wanted!r}; accepted: {', '.join(CHOICES)}.")
    if wanted == "fa3" and not HAS_FA3:
        raise ValueError(f"{OVERRIDE} is 'fa3', but the package fa3-fwd is not installed.")
    return wanted


def _check(query: Tensor, key: Tensor, *, causal: bool, key_lengths: Tensor | None) -> None:
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads cannot share {key.shape[2]} key heads evenly.")
    if causal and query.shape[1] > key.shape[1]:
        raise ValueError(
            f"Causal attention of {query.shape[1]} queries to {key.shape[1]} keys; "
            "accepted: at least as many keys."
        )
    if key_lengths is None:
        return
    if causal:
        raise ValueError("key_lengths is given together with causal; accepted: one of them.")
    if key_lengths.shape != query.shape[:1] or key_lengths.dtype != torch.int32:
        raise ValueError(
            f"key_lengths is {key_lengths.dtype} of shape {tuple(key_lengths.shape)}; "
            f"accepted: torch.int32 of {(query.shape[0],)}."
        )


def _flash3(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, key_lengths: Tensor | None) -> Tensor:
    package = importlib.import_module("fa3_fwd_interface")
    if key_lengths is None:
        out = package.flash_attn_func(query, key, value, causal=causal)
    else:  # the only form of one length for all queries and a length of keys for each row
        out = package.flash_attn_with_kvcache(query, key, value, cache_seqlens=key_lengths, num_splits=1)
    mixed: Tensor = out[0] if isinstance(out, tuple) else out
    return mixed


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, key_lengths: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[2] != key.shape[2]
    # torch knows causal rows from their first query on alone.
    plain = bool(query.shape[1] == key.shape[1]) and key_lengths is None
    seen = None if plain else _seen_keys(query, key, causal=causal, key_lengths=key_lengths)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=causal and plain, enable_gqa=grouped
    ).transpose(1, 2)


def _seen_keys(query: Tensor, key: Tensor, *, causal: bool, key_lengths: Tensor | None) -> Tensor | None:
    """Tell which keys each query sees, to broadcast beside scores ``[B, H, N, M]``; None for all."""
    count, total = query.shape[1], key.shape[1]
    place = torch.arange(total, device=query.device)
    if key_lengths is not None:
        seen = (place < key_lengths[:, None])[:, None, None]
        # ONNX's Attention broadcasts over heads alone.
        return seen.expand(-1, -1, count, -1) if torch.compiler.is_exporting() else seen
    if not causal:
        return None
    return place <= place[total - count :, None]
