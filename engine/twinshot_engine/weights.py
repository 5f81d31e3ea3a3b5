"""Read stored tensors into a module built on the meta device.

First the files' headers are read and compared with what the module expects, so that whatever is wrong is
said before anything is allocated. Then each tensor goes straight from its file to the device and into its
slot, which may be some rows of a packed weight; where the slot is fp8 the tensor is quantised on arrival. At
no time are two copies of a part in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import listed, quoted
from twinshot_engine.tensor_files import READABLE, Header, opened
from twinshot_kernels import quantize_rows

Update = Callable[[Tensor], Tensor]
"""Makes another tensor of a stored one, of the same shape."""


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


@dataclass(frozen=True)
class StoredPart:
    """The tensors in a part's folder, by name, none of them read yet."""

    folder: Path
    headers: Mapping[str, Header]
    ignored: Callable[[str], bool] = field(default=lambda _name: False)
    """Says which stored tensors are known and deliberately not read."""
    updates: Mapping[str, Update] = field(default_factory=dict)
    """What is done to some tensors as they are read: adapters are merged so."""

    def updated(self, updates: Mapping[str, Update]) -> StoredPart:
        """The same part with these updates done after those it has."""
        chained = {name: _chain(self.updates.get(name), update) for name, update in updates.items()}
        return replace(self, updates={**self.updates, **chained})

    def check(self, module: nn.Module, slots: Mapping[str, Slot]) -> None:
        """Compare the headers with what ``module`` expects.

        Args:
            module: on the meta device.
            slots: from stored names to the module's parameters.

        Raises:
            CheckpointError: a tensor is missing, unknown, misshapen or not floating point.
        """
        missing = sorted(slots.keys() - self.headers.keys())
        unknown = sorted(name for name in self.headers.keys() - slots.keys() if not self.ignored(name))
        if missing and unknown:
            file = self.headers[unknown[0]].path
            raise CheckpointError(
                f"{quoted(file)} lacks {listed(missing)}, but has {listed(unknown)}: it is of another model "
                "or version than its config; config and weights must be of one model."
            )
        if missing:
            raise CheckpointError(
                f"{quoted(self._place())} lacks {listed(missing)}: fetch it again, and see that config and "
                "weights are of one model."
            )
        if unknown:
            raise CheckpointError(
                f"{quoted(self.headers[unknown[0]].path)} has unknown parameters: {listed(unknown)}; weights "
                "of another model or version cannot be read."
            )
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
        self.allocate(module, device)
        _clear_gaps(dict(module.named_parameters()), dict(module.named_buffers()), slots.values())
        self.rewrite(module, slots, device, report)
        module.requires_grad_(requires_grad=False)
        module.eval()

    def rewrite(
        self,
        module: nn.Module,
        slots: Mapping[str, Slot],
        device: torch.device,
        report: Callable[[float], None] = lambda _fraction: None,
    ) -> None:
        """Read some weights of an allocated module, in place; arguments are those of :meth:`fill`.

        Raises:
            CheckpointError: a file turns out to be damaged.
        """
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        total = sum(_numel(self.headers[name].shape) for name in slots) or 1
        done = 0
        for name, tensor in self.read(slots, device):
            slot = slots[name]
            _store(parameters[slot.parameter].data, buffers.get(_scale_name(slot.parameter)), slot, tensor)
            done += tensor.numel()
            report(done / total)

    def allocate(self, module: nn.Module, device: torch.device) -> None:
        """Give a module on the meta device memory on ``device``, of undefined content."""
        module.to_empty(device=device)

    def read(self, names: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Read some tensors in the order of their files, updated.

        Raises:
            CheckpointError: a file is damaged.
        """
        for name, tensor in self.read_stored(names, device):
            update = self.updates.get(name)
            yield name, tensor if update is None else update(tensor)

    def read_stored(self, names: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Read some tensors as they are stored; see :meth:`read`."""
        wanted = sorted(names, key=lambda name: (self.headers[name].path, name))
        for path, group in groupby(wanted, key=lambda name: self.headers[name].path):
            with opened(path, device) as tensor:
                for name in group:
                    yield name, tensor(self.headers[name])

    def _place(self) -> Path:
        """The only file, or the folder of several."""
        files = {header.path for header in self.headers.values()}
        return files.pop() if len(files) == 1 else self.folder

    def _check_tensor(self, name: str, expected: tuple[int, ...]) -> None:
        header = self.headers[name]
        told = repr(name) if header.key.endswith(name) else f"{name!r}, in {header.key!r},"
        if header.kind not in READABLE:
            raise CheckpointError(
                f"{quoted(header.path)} stores {told} as {header.kind}, not as one of "
                f"{', '.join(READABLE)}: use a file in one of those."
            )
        if header.shape != expected:
            raise CheckpointError(
                f"{quoted(header.path)} stores {told} as {list(header.shape)}, where its config says "
                f"{list(expected)}: config and weights must be of one model."
            )


def _chain(first: Update | None, second: Update) -> Update:
    return second if first is None else lambda tensor: second(first(tensor))


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
