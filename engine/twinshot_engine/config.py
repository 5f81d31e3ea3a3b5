"""What to load, and where and how to compute."""

import re
from dataclasses import dataclass

import torch

BUILTIN = "builtin"

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of an :class:`~twinshot_engine.engine.Engine`.

    Attributes:
        checkpoint: ``builtin``, a folder, or a Hub id ``org/name[/subfolder][@revision]``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:<index>``.
        precision: ``auto`` (bf16 on a GPU, fp32 on the CPU), ``fp32`` or ``bf16``.
        max_batch: most requests in one batch.
        threads: CPU threads for the whole process; None leaves torch's own choice.

    Raises:
        ValueError: a setting is not one of those.
    """

    checkpoint: str = BUILTIN
    device: str = "auto"
    precision: str = "auto"
    max_batch: int = 8
    threads: int | None = None

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device {self.device!r} is not 'auto', 'cpu', 'cuda' or 'cuda:<index>'")
        if self.precision not in ("auto", *_DTYPES):
            raise ValueError(f"precision {self.precision!r} is not 'auto', 'fp32' or 'bf16'")
        if self.max_batch < 1:
            raise ValueError(f"max_batch {self.max_batch} is not at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads} is not at least 1")

    def placement(self) -> "Placement":
        """Resolve the automatic choices on this machine.

        Raises:
            ValueError: the device does not exist here.
        """
        device = self._find_device()
        automatic = "bf16" if device.type == "cuda" else "fp32"
        return Placement(device, automatic if self.precision == "auto" else self.precision)

    def _find_device(self) -> torch.device:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "cpu" or (self.device == "auto" and count == 0):
            return torch.device("cpu")
        device = torch.device("cuda" if self.device == "auto" else self.device)
        index = device.index or 0
        if index >= count:
            raise ValueError(f"device {self.device!r} does not exist: this machine has {count} CUDA devices")
        return torch.device("cuda", index)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model lives and in which number format."""

    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of :attr:`precision`."""
        return _DTYPES[self.precision]
