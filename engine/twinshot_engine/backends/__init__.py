"""What runs a model's three stages.

``eager`` calls them, ``fused`` replays CUDA graphs of them, ``tensorrt`` runs engines built of them.
"""

from collections.abc import Callable, Mapping

from twinshot_engine.backends.eager import EagerBackend
from twinshot_engine.backends.fused import FusedBackend
from twinshot_engine.backends.stages import Stages
from twinshot_engine.backends.tensorrt import TensorRTBackend
from twinshot_engine.families.model import Model

__all__ = ["BACKENDS", "Stages"]

BACKENDS: Mapping[str, Callable[[Model], Stages]] = {
    "eager": EagerBackend,
    "fused": FusedBackend,
    "tensorrt": TensorRTBackend,
}
