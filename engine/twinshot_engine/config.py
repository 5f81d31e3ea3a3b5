"""What to load, and where and how to compute."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.types import Size

BUILTIN = "builtin"

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
_PRECISIONS = ("auto", "fp32", "bf16", "fp8")
_BACKENDS = ("auto", "eager", "fused", "tensorrt")
_MEMORY = ("normal", "low")
_AUTOMATIC = {(True, False): "bf16", (True, True): "fp8", (False, False): "fp32", (False, True): "bf16"}
"""What precision "auto" means on a GPU or not, with little memory or not."""
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of an :class:`~twinshot_engine.engine.Engine`.

    Attributes:
        checkpoint: ``builtin``, a folder, a Hub id ``org/name[/subfolder][@revision]``, a safetensors or GGUF
            file with a transformer alone (local or in a Hub repository), or ``random:z-image`` and its
            like for random weights of the published sizes.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:<index>``.
        precision: ``auto`` (bf16 on a GPU, fp32 on the CPU), ``fp32``, ``bf16`` or ``fp8``.
        text_fp8: keep the text encoder's projections in fp8 as well; they follow no other setting but memory.
        backend: ``fused`` replays CUDA graphs captured while warming, ``eager`` runs the same operations one
            by one, ``tensorrt`` runs ``engines``; ``auto`` is that if there are any, else fused on a GPU.
        engines: a folder that ``twinshot build`` made.
        fallback: whether to serve without engines that cannot be used, and only say so in the log.
        sizes: the sizes to advertise, as (width, height), default first; None for the checkpoint's own.
        steps: the step counts to advertise, each once; a :class:`~twinshot_engine.schedule.Steps` may name
            its schedule. Their constants are computed at load.
        batch_sizes: how many images may share one pass on the fused backend; 1 must be among them.
        max_batch: most requests in one call.
        text_cache_bytes: most bytes of encoded prompts kept on the device; 0 keeps none.
        threads: CPU threads for the whole process; None leaves torch's own choice.
        base: a checkpoint of the same family that supplies the parts which ``checkpoint`` lacks.
        adapters: LoRA files: ``name=path[:scale]`` for requests to choose by name, ``path[:scale]`` to be
            merged into the weights for good; a path may be a Hub id.
        memory: ``low`` makes ``precision: auto`` fp8, and the text encoder too; on the CPU it makes it bf16.

    Raises:
        ValueError: a setting is not one of those.
    """

    checkpoint: str = BUILTIN
    device: str = "auto"
    precision: str = "auto"
    text_fp8: bool = False
    backend: str = "auto"
    engines: str | None = None
    fallback: bool = False
    sizes: tuple[Size, ...] | None = None
    steps: tuple[int, ...] = (1, 2, 4)
    batch_sizes: tuple[int, ...] = (1,)
    max_batch: int = 8
    text_cache_bytes: int = 256 * 2**20
    threads: int | None = None
    base: str | None = None
    adapters: tuple[str, ...] = ()
    memory: str = "normal"

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device {self.device!r} is not 'auto', 'cpu', 'cuda' or 'cuda:<index>'")
        _check_choice("precision", self.precision, _PRECISIONS)
        _check_choice("backend", self.backend, _BACKENDS)
        _check_choice("memory", self.memory, _MEMORY)
        for name in ("max_batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} is not at least 1")
        if self.text_cache_bytes < 0:
            raise ValueError(f"text_cache_bytes {self.text_cache_bytes} is not at least 0")
        if 1 not in self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes {self.batch_sizes} are not whole numbers from 1 with 1 among them")
        self._check_steps()
        self._check_adapters()
        self._check_engines()

    def _check_steps(self) -> None:
        if not self.steps:
            raise ValueError("steps is empty: at least one step count must be advertised")
        if len(set(self.steps)) < len(self.steps):
            raise ValueError(f"steps {', '.join(map(str, self.steps))} name a count twice: one schedule each")

    def _check_adapters(self) -> None:
        names = [source.name for source in self._adapter_sources if source.name]
        if len(set(names)) < len(names):
            raise ValueError(f"adapters {', '.join(names)} name one twice")

    def _check_engines(self) -> None:
        if (self.engines is None) == (self.backend == "tensorrt") and self.backend != "auto":
            needed = "needs a folder of engines" if self.engines is None else "runs no engines"
            raise ValueError(f"backend {self.backend!r} {needed}: 'tensorrt' goes together with engines")
        if self.engines is not None and self.adapters:
            raise ValueError(f"adapters {', '.join(self.adapters)} cannot change engines: take one of both")

    @property
    def named_adapters(self) -> Mapping[str, AdapterSource]:
        """The adapters that requests may choose."""
        return {source.name: source for source in self._adapter_sources if source.name}

    @property
    def merged_adapters(self) -> tuple[AdapterSource, ...]:
        """The adapters that become part of the weights, in order."""
        return tuple(source for source in self._adapter_sources if source.name is None)

    @property
    def _adapter_sources(self) -> list[AdapterSource]:
        return [AdapterSource.parse(text) for text in self.adapters]

    def placement(self) -> "Placement":
        """Resolve the automatic choices on this machine.

        Raises:
            ValueError: the device does not exist here, or cannot do what is asked for.
        """
        device = self._find_device()
        low, cuda = self.memory == "low", device.type == "cuda"
        automatic = _AUTOMATIC[cuda, low]
        precision = automatic if self.precision == "auto" else self.precision
        text_fp8 = self.text_fp8 or (low and cuda)
        if precision == "fp8" or text_fp8:
            _check_fp8(device)
        backend = self._find_backend(device) if self.backend == "auto" else self.backend
        if backend == "fused" and device.type != "cuda":
            raise ValueError(f"backend 'fused' needs a GPU, not {str(device)!r}: 'eager' is accepted there")
        engines = None if self.engines is None else Path(self.engines).expanduser()
        return Placement(device, precision, text_fp8, backend, engines)

    def _find_backend(self, device: torch.device) -> str:
        if self.engines is not None:
            return "tensorrt"
        return "fused" if device.type == "cuda" else "eager"

    def _find_device(self) -> torch.device:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "cpu" or (self.device == "auto" and count == 0):
            return torch.device("cpu")
        device = torch.device("cuda" if self.device == "auto" else self.device)
        index = device.index or 0
        if index >= count:
            raise ValueError(f"device {self.device!r} does not exist: use auto or cpu ({count} CUDA devices)")
        return torch.device("cuda", index)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model lives, in which number format, and what runs it; ``engines`` for backend ``tensorrt``."""

    device: torch.device
    precision: str
    text_fp8: bool = False
    backend: str = "eager"
    engines: Path | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of activations, and of the weights that are not fp8."""
        return _DTYPES[self.precision]

    @property
    def text_precision(self) -> str:
        """The format of the text encoder's projections: ``fp8``, else the type of everything around."""
        if self.text_fp8:
            return "fp8"
        return self.precision if self.precision in ("fp32", "fp16") else "bf16"


def _check_choice(name: str, value: str, accepted: Iterable[str]) -> None:
    if value not in accepted:
        *most, last = (repr(choice) for choice in accepted)
        raise ValueError(f"{name} {value!r} is not {', '.join(most)} or {last}")


def _check_fp8(device: torch.device) -> None:
    needed = ".".join(map(str, _FP8_CAPABILITY))
    if device.type != "cuda":
        raise ValueError(
            f"fp8 needs a GPU of compute capability {needed} or newer, not {str(device)!r}: "
            "precisions 'fp32' and 'bf16' are accepted there"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        raise ValueError(
            f"fp8 needs compute capability {needed} or newer, but {torch.cuda.get_device_name(device)} has "
            f"{'.'.join(map(str, capability))}: precisions 'fp32' and 'bf16' are accepted there"
        )
