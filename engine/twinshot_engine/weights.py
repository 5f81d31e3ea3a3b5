"""Read safetensors, single or sharded, into a module built on the meta device.

First the files' headers are read and compared with what the module expects, so that whatever is wrong is
said before anything is allocated. Then each tensor goes straight from its file to the device and into its
slot, which may be some rows of a packed weight; where the slot is fp8 the tensor is quantised on arrival. At
no time are two copies of a part in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import read_json, tell
from twinshot_kernels import quantize_rows

_STEMS = ("diffusion_pytorch_model", "model")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATING = frozenset(("F64", "F32", "F16", "BF16"))


class Slot(NamedTuple):
    """Where a stored tensor goes: a parameter of the module, or some rows and columns of one.

    Where no slot covers a parameter it is zero.
    """

    parameter: str
    rows: slice | int | None = None
    columns: slice | None = None
    view: Callable[[Tensor], Tensor] | None = None
    """Shows the part in the shape of the stored tensor, where that differs."""

    def place(self, parameter: Tensor) -> Tensor:
        """View the part of the parameter that the stored tensor fills."""
        part = parameter if self.rows is None else parameter[self.rows]
        part = part if self.columns is None else part[:, self.columns]
        return part if self.view is None else self.view(part)


def as_wide(matrix: Tensor) -> Tensor:
    """View a matrix ``[out, in]`` as the 1x1 convolution that is stored."""
    return matrix[..., None, None]


def as_taps(taps: Tensor) -> Tensor:
    """View ``[9, channels]`` as the weight ``[channels, 1, 3, 3]`` of a depthwise convolution."""
    return torch.unflatten(taps.t(), 1, (1, 3, 3))


class Header(NamedTuple):
    """What a file says about one of its tensors; ``key`` is the tensor's name there."""

    path: Path
    key: str
    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class StoredPart:
    """The tensors in a part's folder, by name, none of them read yet."""

    folder: Path
    headers: Mapping[str, Header]
    ignored: Callable[[str], bool] = field(default=lambda _name: False)
    """Says which stored tensors are known and deliberately not read."""

    def check(self, module: nn.Module, slots: Mapping[str, Slot]) -> None:
        """Compare the headers with what ``module`` expects.

        Args:
            module: on the meta device.
            slots: from stored names to the module's parameters.

        Raises:
            CheckpointError: a tensor is missing, unknown, misshapen or not floating point.
        """
        if missing := sorted(slots.keys() - self.headers.keys()):
            raise CheckpointError(f"'{self.folder}' lacks {_list(missing)}.")
        unknown = sorted(name for name in self.headers.keys() - slots.keys() if not self.ignored(name))
        if unknown:
            raise CheckpointError(f"'{self.folder}' has unknown parameters: {_list(unknown)}.")
        parameters = dict(module.named_parameters())
        for name, slot in slots.items():
            self._check_tensor(name, tuple(slot.place(parameters[slot.parameter]).shape))

    def fill(
        self,
        module: nn.Module,
        slots: Mapping[str, Slot],
        device: torch.device,
        report: Callable[[float], None] = lambda _fraction: None,
    ) -> None:
        """Allocate a checked module on ``device`` and read its weights; it is frozen and ready to run.

        Args:
            module: on the meta device, its parameters already of the type they shall have.
            slots: as for :meth:`check`.
            device: where to.
            report: receives the share of the bytes read so far, 0 to 1.

        Raises:
            CheckpointError: a file turns out to be damaged.
        """
        module.to_empty(device=device)
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        _clear_gaps(parameters, buffers, slots.values())
        total = sum(_numel(self.headers[name].shape) for name in slots) or 1
        done = 0
        for name, tensor in self.read(slots, device):
            slot = slots[name]
            _store(parameters[slot.parameter].data, buffers.get(_scale_name(slot.parameter)), slot, tensor)
            done += tensor.numel()
            report(done / total)
        module.requires_grad_(requires_grad=False)
        module.eval()

    def read(self, names: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Read some tensors in the order of their files.

        Raises:
            CheckpointError: a file is damaged.
        """
        wanted = sorted(names, key=lambda name: (self.headers[name].path, name))
        for path, group in groupby(wanted, key=lambda name: self.headers[name].path):
            with _opened(path, str(device)) as file:
                for name in group:
                    yield name, file.get_tensor(self.headers[name].key)

    def _check_tensor(self, name: str, expected: tuple[int, ...]) -> None:
        header = self.headers[name]
        if header.kind not in _FLOATING:
            raise CheckpointError(
                f"'{header.path}' stores {name!r} as {header.kind}, "
                f"not as one of {', '.join(sorted(_FLOATING))}."
            )
        if header.shape != expected:
            raise CheckpointError(
                f"'{self.folder}' stores {name!r} as {list(header.shape)}, "
                f"where its config says {list(expected)}."
            )


def find_part(
    folder: Path,
    *,
    rename: Callable[[str], str] = lambda name: name,
    ignored: Callable[[str], bool] = lambda _name: False,
) -> StoredPart:
    """Read the headers of a part's safetensors files.

    Args:
        folder: holds ``diffusion_pytorch_model`` or ``model``, as ``.safetensors`` or shards with an index.
        rename: from a tensor's name in the file to the name it is known by here.
        ignored: names of tensors that are known and not needed.

    Raises:
        CheckpointError: a file is missing, pickled, truncated or no safetensors file.
    """
    headers: dict[str, Header] = {}
    for path in _files(folder):
        with _opened(path, "cpu") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                piece = file.get_slice(key)
                headers[rename(key)] = Header(path, key, tuple(piece.get_shape()), str(piece.get_dtype()))
    return StoredPart(folder, headers, ignored)


def same_names(module: nn.Module) -> dict[str, Slot]:
    """Slots of a module whose parameters are stored under their own names."""
    return {name: Slot(name) for name, _ in module.named_parameters()}


def pack(slots: dict[str, Slot], parameter: str, parts: Iterable[tuple[str, int]], pitch: int = 1) -> None:
    """Replace the slot of a packed parameter by slots of the parts it is stored as.

    Args:
        slots: changed in place.
        parameter: the packed parameter.
        parts: stored name and row count of each part, in the order they are packed.
        pitch: parts begin at multiples of this many rows.
    """
    del slots[parameter]
    start = 0
    for name, rows in parts:
        slots[name] = Slot(parameter, slice(start, start + rows))
        start += rows + -rows % pitch


def _clear_gaps(
    parameters: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor], slots: Iterable[Slot]
) -> None:
    """Zero every parameter that the slots do not cover, and its scales."""
    left = {name: parameter.numel() for name, parameter in parameters.items()}
    for slot in slots:
        left[slot.parameter] -= slot.place(parameters[slot.parameter]).numel()
    for name in (name for name, elements in left.items() if elements):
        parameters[name].data.zero_()
        if (scale := buffers.get(_scale_name(name))) is not None:
            scale.zero_()


def _scale_name(parameter: str) -> str:
    return f"{parameter.removesuffix('.weight')}.weight_scale"


def _store(parameter: Tensor, scale: Tensor | None, slot: Slot, tensor: Tensor) -> None:
    if scale is None:
        slot.place(parameter).copy_(tensor)
        return
    values, row_scale = quantize_rows(tensor.flatten(1))
    slot.place(parameter).copy_(values.view(tensor.shape))
    scale[slot.rows or slice(None)].copy_(row_scale.squeeze(-1))


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _files(folder: Path) -> list[Path]:
    for stem in _STEMS:
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return _shards(index)
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"'{folder}' holds only pickled weights ({pickled[0]}), which are never loaded: use safetensors."
        )
    raise CheckpointError(f"'{folder / _STEMS[0]}.safetensors' is missing.")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"'{index}' has no weight_map.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"'{index}' names {name!r}, which is not a safetensors file beside it.")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"'{index.parent / name}' is missing, though '{index.name}' names it.")
    return [index.parent / name for name in names]


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is truncated or not a safetensors file: {tell(error)}.") from error


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in islice(names, 3))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
