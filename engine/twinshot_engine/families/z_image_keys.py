"""Z-Image's transformer under the names of ComfyUI, of GGUF converters and of the original release."""

from __future__ import annotations

from twinshot_engine.families.repacked import Headers, Repack, rename, split_rows
from twinshot_engine.tensor_files import Header

_NAMES = (
    (r"^x_embedder\.", "all_x_embedder.2-1."),
    (r"^final_layer\.", "all_final_layer.2-1."),
    (r"\.attention\.out\.", ".attention.to_out.0."),
    (r"\.attention\.([qk])_norm\.", r".attention.norm_\1."),
)
_PAD_TOKENS = ("x_pad_token", "cap_pad_token")
_UNUSED = "norm_final.weight"


def translate(headers: Headers) -> Headers:
    """See :class:`~twinshot_engine.families.repacked.Repack`."""
    named = rename(headers, _NAMES)
    parts = [f".attention.to_{part}.weight" for part in "qkv"]
    split = split_rows(named, ".attention.qkv.weight", parts)
    return {name: _as_stored(name, header) for name, header in split.items() if name != _UNUSED}


def _as_stored(name: str, header: Header) -> Header:
    """Some files store the pad tokens without their first axis of 1."""
    flat = name in _PAD_TOKENS and len(header.shape) == 1
    return header._replace(shape=(1, *header.shape)) if flat else header


Z_IMAGE_REPACK = Repack(
    frozenset(("cap_embedder.1.weight", "x_pad_token", "layers.0.attention.to_q.weight")),
    translate,
    "Tongyi-MAI/Z-Image-Turbo",
)
"""Transformer-only files of ``ZImagePipeline``."""
