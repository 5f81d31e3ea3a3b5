"""Tensor operations of twinshot, one a file, each with its plain-torch reference.

Importing this package never needs Triton: every operation has a CPU implementation. On CUDA its Triton
kernel runs instead, unless a gradient is wanted: then the reference does, and autograd follows it.
"""

from twinshot_kernels.attention import attention, attention_backend, attention_reference
from twinshot_kernels.bias_silu import bias_silu, bias_silu_reference
from twinshot_kernels.biased_attention import biased_attention, biased_attention_reference
from twinshot_kernels.capped_attention import capped_attention, capped_attention_reference
from twinshot_kernels.depthwise_glu import depthwise_glu, depthwise_glu_reference
from twinshot_kernels.depthwise_mix import depthwise_mix, depthwise_mix_reference
from twinshot_kernels.embed_rows import embed_rows, embed_rows_reference
from twinshot_kernels.gated_residual import gated_residual, gated_residual_reference
from twinshot_kernels.gated_residual_layer_norm import (
    gated_residual_layer_norm,
    gated_residual_layer_norm_fp8,
    gated_residual_layer_norm_fp8_reference,
    gated_residual_layer_norm_reference,
)
from twinshot_kernels.gated_residual_norm import (
    gated_residual_norm,
    gated_residual_norm_fp8,
    gated_residual_norm_fp8_reference,
    gated_residual_norm_reference,
)
from twinshot_kernels.geglu import geglu, geglu_fp8, geglu_fp8_reference, geglu_reference
from twinshot_kernels.gelu_fp8 import gelu_fp8, gelu_fp8_reference
from twinshot_kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference
from twinshot_kernels.group_norm_silu_taps import group_norm_silu_taps, group_norm_silu_taps_reference
from twinshot_kernels.group_statistics import (
    group_statistics,
    group_statistics_reference,
    residual_statistics,
    residual_statistics_reference,
)
from twinshot_kernels.joint_norm_rotary import joint_norm_rotary, joint_norm_rotary_reference
from twinshot_kernels.layer_norm import (
    layer_norm,
    layer_norm_fp8,
    layer_norm_fp8_reference,
    layer_norm_reference,
)
from twinshot_kernels.linear_attention import linear_attention, linear_attention_reference
from twinshot_kernels.linear_gelu import linear_gelu, linear_gelu_reference
from twinshot_kernels.pixel_norm import (
    pixel_norm,
    pixel_norm_reference,
    pixel_norm_taps,
    pixel_norm_taps_reference,
)
from twinshot_kernels.qk_norm_rotary import qk_norm_rotary, qk_norm_rotary_reference
from twinshot_kernels.quantize_pixels import quantize_pixels, quantize_pixels_reference
from twinshot_kernels.quantize_rows import quantize_rows, quantize_rows_reference
from twinshot_kernels.quantize_taps import quantize_taps, quantize_taps_reference, sum_taps
from twinshot_kernels.residual_norm import (
    residual_norm,
    residual_norm_fp8,
    residual_norm_fp8_reference,
    residual_norm_reference,
)
from twinshot_kernels.rms_norm import (
    rms_norm,
    rms_norm_fp8,
    rms_norm_fp8_reference,
    rms_norm_reference,
)
from twinshot_kernels.rms_norm_silu import (
    residual_rms_norm_silu,
    residual_rms_norm_silu_reference,
    residual_sum,
    residual_sum_reference,
    rms_norm_silu,
    rms_norm_silu_reference,
)
from twinshot_kernels.rotary import rotary, rotary_reference
from twinshot_kernels.scaled_linear import scaled_linear, scaled_linear_reference
from twinshot_kernels.swiglu import swiglu, swiglu_fp8, swiglu_fp8_reference, swiglu_reference
from twinshot_kernels.upsample_shortcut import upsample_shortcut, upsample_shortcut_reference
from twinshot_kernels.wide_attention import wide_attention, wide_attention_reference

__all__ = [
    "attention",
    "attention_backend",
    "attention_reference",
    "bias_silu",
    "bias_silu_reference",
    "biased_attention",
    "biased_attention_reference",
    "capped_attention",
    "capped_attention_reference",
    "depthwise_glu",
    "depthwise_glu_reference",
    "depthwise_mix",
    "depthwise_mix_reference",
    "embed_rows",
    "embed_rows_reference",
    "gated_residual",
    "gated_residual_layer_norm",
    "gated_residual_layer_norm_fp8",
    "gated_residual_layer_norm_fp8_reference",
    "gated_residual_layer_norm_reference",
    "gated_residual_norm",
    "gated_residual_norm_fp8",
    "gated_residual_norm_fp8_reference",
    "gated_residual_norm_reference",
    "gated_residual_reference",
    "geglu",
    "geglu_fp8",
    "geglu_fp8_reference",
    "geglu_reference",
    "gelu_fp8",
    "gelu_fp8_reference",
    "group_norm_silu",
    "group_norm_silu_reference",
    "group_norm_silu_taps",
    "group_norm_silu_taps_reference",
    "group_statistics",
    "group_statistics_reference",
    "joint_norm_rotary",
    "joint_norm_rotary_reference",
    "layer_norm",
    "layer_norm_fp8",
    "layer_norm_fp8_reference",
    "layer_norm_reference",
    "linear_attention",
    "linear_attention_reference",
    "linear_gelu",
    "linear_gelu_reference",
    "pixel_norm",
    "pixel_norm_reference",
    "pixel_norm_taps",
    "pixel_norm_taps_reference",
    "qk_norm_rotary",
    "qk_norm_rotary_reference",
    "quantize_pixels",
    "quantize_pixels_reference",
    "quantize_rows",
    "quantize_rows_reference",
    "quantize_taps",
    "quantize_taps_reference",
    "residual_norm",
    "residual_norm_fp8",
    "residual_norm_fp8_reference",
    "residual_norm_reference",
    "residual_rms_norm_silu",
    "residual_rms_norm_silu_reference",
    "residual_statistics",
    "residual_statistics_reference",
    "residual_sum",
    "residual_sum_reference",
    "rms_norm",
    "rms_norm_fp8",
    "rms_norm_fp8_reference",
    "rms_norm_reference",
    "rms_norm_silu",
    "rms_norm_silu_reference",
    "rotary",
    "rotary_reference",
    "scaled_linear",
    "scaled_linear_reference",
    "sum_taps",
    "swiglu",
    "swiglu_fp8",
    "swiglu_fp8_reference",
    "swiglu_reference",
    "upsample_shortcut",
    "upsample_shortcut_reference",
    "wide_attention",
    "wide_attention_reference",
]
