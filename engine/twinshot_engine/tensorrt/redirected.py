"""Parts whose weights go elsewhere than into memory, as ``Checkpoint.redirect`` says.

An exporter maps them into a file, so that a model larger than the memory can be exported; who serves built
engines needs none of them. Families load either like any other checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from twinshot_engine.errors import EngineFilesError
from twinshot_engine.files import quoted, tell
from twinshot_engine.weights import Slot, StoredPart

_ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class UnreadPart(StoredPart):
    """A part that stays on the meta device; single tensors can be read."""

    source: StoredPart

    def fill(
        self,
        module: nn.Module,
        slots: Mapping[str, Slot],  # noqa: ARG002 - nothing is filled
        device: torch.device,  # noqa: ARG002
        report: Callable[[float], None] = lambda _fraction: None,  # noqa: ARG002
    ) -> None:
        """Freeze the module and leave it where it is."""
        module.requires_grad_(requires_grad=False)
        module.eval()

    def read(self, names: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Read some tensors."""
        return self.source.read(names, device)


@dataclass(frozen=True, kw_only=True)
class MappedPart(StoredPart):
    """A part whose memory is a file: the system may write it out and read it again as it needs memory."""

    source: StoredPart
    file: Path

    def allocate(self, module: nn.Module, device: torch.device) -> None:  # noqa: ARG002 - a file
        """Make the file and lay the module's parameters and buffers out in it.

        Raises:
            EngineFilesError: it cannot be made; a full disk is noticed now and not when it is written.
        """
        tensors = [*module.parameters(), *module.buffers()]
        starts = _starts(tensors)
        _reserve(self.file, starts[-1])
        memory = torch.from_file(str(self.file), shared=True, size=starts[-1], dtype=torch.uint8)
        places = {id(tensor): memory[start:] for tensor, start in zip(tensors, starts, strict=False)}
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                view = _view(places[id(parameter)], parameter)
                setattr(layer, name, nn.Parameter(view, requires_grad=False))
            for name, buffer in layer.named_buffers(recurse=False):
                setattr(layer, name, _view(places[id(buffer)], buffer))

    def read(self, names: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Read some tensors."""
        return self.source.read(names, device)


def unread(part: StoredPart) -> StoredPart:
    """Leave a part's weights where they are."""
    return UnreadPart(part.folder, part.headers, part.ignored, source=part)


def mapped(folder: Path) -> Callable[[StoredPart], StoredPart]:
    """Map every part's weights into a file of ``folder``, which must exist."""

    def redirect(part: StoredPart) -> StoredPart:
        file = folder / f"{part.folder.name}.weights"
        return MappedPart(part.folder, part.headers, part.ignored, source=part, file=file)

    return redirect


def _starts(tensors: Iterable[Tensor]) -> list[int]:
    """Where each tensor begins, and where the last one ends."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + tensor.nbytes + -tensor.nbytes % _ALIGNMENT)
    return starts


def _reserve(path: Path, size: int) -> None:
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise EngineFilesError(f"{size} bytes for {quoted(path)} cannot be had: {tell(error)}.") from error


def _view(memory: Tensor, like: Tensor) -> Tensor:
    return memory[: like.nbytes].view(like.dtype).view(like.shape)
