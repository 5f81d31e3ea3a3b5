"""The engine: checkpoints, model families and schedules; tensors in, pixels out.

Start at :class:`twinshot_engine.engine.Engine`. Importing this package alone loads nothing heavy.
"""
