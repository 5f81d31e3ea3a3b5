"""Engines of TensorRT: exported and built from a checkpoint (``build``), verified and served (``serving``).

What only building needs is the extra ``[export]``; serving needs TensorRT or TensorRT for RTX alone.
"""
