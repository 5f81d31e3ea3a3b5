"""Measurements of the engine, for ``twinshot bench``: latency by part, and beside plain diffusers."""
