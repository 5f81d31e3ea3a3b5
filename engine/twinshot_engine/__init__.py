"""The engine: checkpoints, model families and schedules; tensors in, pixels out.

Start at :class:`twinshot_engine.engine.Engine`. Importing this package alone loads nothing heavy.
"""

import os

# Torch's OpenMP threads spin while they wait for each other. Where another process wants the same cores, they
# spin away the time that the last thread needs: a 0.3 s picture took 6.4 s beside one busy process, and 0.5
# to 0.7 s with this short spin, which costs nothing measurable on idle cores. Read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Segments of GPU memory that grow leave fewer gaps between what is loaded and what is captured: 0.6 to 0.8 GB
# less for one model. Read when torch first allocates on a GPU.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
