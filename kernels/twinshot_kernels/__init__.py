"""Tensor operations of twinshot, one a file, each with its plain-torch reference.

Importing this package never needs Triton: every operation has a CPU implementation.
"""

from twinshot_kernels.attention import attention, attention_reference
from twinshot_kernels.quantize_pixels import quantize_pixels, quantize_pixels_reference
from twinshot_kernels.rms_norm import rms_norm, rms_norm_reference
from twinshot_kernels.rotary import rotary, rotary_reference
from twinshot_kernels.swiglu import swiglu, swiglu_reference

__all__ = [
    "attention",
    "attention_reference",
    "quantize_pixels",
    "quantize_pixels_reference",
    "rms_norm",
    "rms_norm_reference",
    "rotary",
    "rotary_reference",
    "swiglu",
    "swiglu_reference",
]
