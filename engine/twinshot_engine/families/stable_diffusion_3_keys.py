"""Stable Diffusion 3.5's transformer under the names of the original release, which ComfyUI and GGUF keep.

Source of the names: Stability AI's published ``sd3.5_medium.safetensors``, and the ``MMDiT`` that it is of.
"""

from __future__ import annotations

from twinshot_engine.families.repacked import Headers, Repack, rename, split_rows
from twinshot_engine.tensor_files import Header

_FLAT = (
    (
        r"^joint_blocks_(\d+)_(x|context)_block_(attn2?|mlp|adaLN_modulation)_(\w+)\.",
        r"joint_blocks.\1.\2_block.\3.\4.",
    ),
    (r"^([ty])_embedder_mlp_(\d)\.", r"\1_embedder.mlp.\2."),
    (r"^final_layer_linear\.", "final_layer.linear."),
    (r"^final_layer_adaLN_modulation_1\.", "final_layer.adaLN_modulation.1."),
)
"""The underscores of kohya's LoRAs."""

_MLP = {"x_block": "ff", "context_block": "ff_context"}
_NAMES = (
    (r"^pos_embed$", "pos_embed.pos_embed"),
    (r"^x_embedder\.proj\.", "pos_embed.proj."),
    (r"^t_embedder\.mlp\.0\.", "time_text_embed.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_text_embed.timestep_embedder.linear_2."),
    (r"^y_embedder\.mlp\.0\.", "time_text_embed.text_embedder.linear_1."),
    (r"^y_embedder\.mlp\.2\.", "time_text_embed.text_embedder.linear_2."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^joint_blocks\.", "transformer_blocks."),
    (r"\.x_block\.adaLN_modulation\.1\.", ".norm1.linear."),
    (r"\.context_block\.adaLN_modulation\.1\.", ".norm1_context.linear."),
    *((rf"\.{block}\.mlp\.fc1\.", f".{ours}.net.0.proj.") for block, ours in _MLP.items()),
    *((rf"\.{block}\.mlp\.fc2\.", f".{ours}.net.2.") for block, ours in _MLP.items()),
    (r"\.x_block\.(attn2?)\.proj\.", r".\1.to_out.0."),
    (r"\.x_block\.(attn2?)\.ln_([qk])\.", r".\1.norm_\2."),
    (r"\.context_block\.attn\.proj\.", ".attn.to_add_out."),
    (r"\.context_block\.attn\.ln_([qk])\.", r".attn.norm_added_\1."),
)
_FUSED = {
    ".x_block.attn.qkv.": (".attn.to_q.", ".attn.to_k.", ".attn.to_v."),
    ".x_block.attn2.qkv.": (".attn2.to_q.", ".attn2.to_k.", ".attn2.to_v."),
    ".context_block.attn.qkv.": (".attn.add_q_proj.", ".attn.add_k_proj.", ".attn.add_v_proj."),
}
_ADA_LN = "adaLN_modulation.1."
_POSITIONS = "pos_embed.pos_embed"


def translate(headers: Headers) -> Headers:
    """See :class:`~twinshot_engine.families.repacked.Repack`."""
    dotted = rename(headers, _FLAT)
    named = rename({name: _in_order(name, header, dotted) for name, header in dotted.items()}, _NAMES)
    for fused, parts in _FUSED.items():
        for kind in ("weight", "bias"):
            named = split_rows(named, fused + kind, [part + kind for part in parts])
    return {name: _as_stored(name, header) for name, header in named.items()}


def _in_order(name: str, header: Header, headers: Headers) -> Header:
    """Where adaLN only makes shift and scale, diffusers stores the scale first.

    So it is at the end of both streams: in the final layer, and for the text in the last block, which only
    the shape of its weight tells from the other blocks.
    """
    if _ADA_LN not in name:
        return header
    weight = headers.get(f"{name.rpartition('.')[0]}.weight", header).shape
    ends = header.shape and len(weight) == 2 and weight[0] == 2 * weight[1]
    return header._replace(turned=header.shape[0] // 2) if ends else header


def _as_stored(name: str, header: Header) -> Header:
    """Tools that quantise drop a first axis of 1."""
    flat = name == _POSITIONS and len(header.shape) == 2
    return header._replace(shape=(1, *header.shape)) if flat else header


STABLE_DIFFUSION_3_REPACK = Repack(
    frozenset(
        ("context_embedder.weight", "pos_embed.pos_embed", "transformer_blocks.0.attn.add_q_proj.weight")
    ),
    translate,
    "stabilityai/stable-diffusion-3.5-medium",
)
"""Transformer-only files of ``StableDiffusion3Pipeline``."""
