"""Adapters that are loaded, and the transformer's weights as one of them, or none, leaves them.

An adapter in use is merged: the same kernels and CUDA graphs run at the same speed, in fp8 too. Switching
writes the adapted weights in place, each made anew from what the checkpoint stores, so that a weight never
depends on which adapters came before; subtracting what was added would not give the same bits. The stored
weights that some adapter changes are therefore kept beside the model: on the GPU where twice their size is
free, else in pinned host memory.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.families.model import Adaptable, Folded, Model, Pass
from twinshot_engine.lora.reading import Lora, find_lora
from twinshot_engine.weights import StoredPart

Passes = Mapping[int, tuple[Pass, ...]]
_ROOM = 2
_numbers = itertools.count(1)


@dataclass(frozen=True)
class _KeptPart(StoredPart):
    """A part whose tensors lie in memory."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def read_stored(self, names: Iterable[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, self.tensors[name].to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An adapter, and what is folded of the weights that it changes; ``number`` is never used twice."""

    lora: Lora
    folded: Folded
    number: int = field(default_factory=lambda: next(_numbers))


class Adapters:
    """The adapters of one model.

    :meth:`use` and what follows from it are for the thread that generates. Meanwhile another one may load
    and unload, which reads files and leaves the transformer as it is.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._device = model.placement.device
        self._loaded: dict[str, _Loaded] = {}
        self._active: _Loaded | None = None
        self._kept: dict[str, Tensor] = {}
        self._changed: frozenset[str] = frozenset()
        self._coming: frozenset[str] = frozenset()  # what is being read, or was found kept for who reads
        self._torn = False  # whether a switch failed in the middle
        self._lock = threading.Lock()  # held where what is kept, loaded or in use changes

    @property
    def names(self) -> Sequence[str]:
        """Those that requests may name."""
        return list(self._loaded)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the stored weights that are kept."""
        return sum(tensor.nbytes for tensor in self._kept.values())

    @property
    def passes(self) -> Passes:
        """The constants of every step count with the adapter in use."""
        return self._model.passes if self._active is None else self._active.folded.passes

    @property
    def number(self) -> int:
        """Tells the adapter in use from every other that ever was; 0 is none."""
        return 0 if self._active is None else self._active.number

    def load(self, name: str, source: AdapterSource) -> None:
        """Read an adapter and keep what it changes; one of the same name is replaced.

        Raises:
            CheckpointError: it cannot be read or does not fit.
            InvalidRequestError: this model takes no adapters.
        """
        adaptable = self._adaptable()
        lora = find_lora(source, adaptable.stored.headers, adaptable.translate)
        loaded = _Loaded(lora, _fold(adaptable, lora))
        with self._lock:
            self._coming = frozenset(lora.updates.keys() & adaptable.slots.keys())
            missing = self._coming - self._kept.keys()
        try:
            kept = self._read(adaptable, sorted(missing))
            with self._lock:
                self._kept |= kept
                self._loaded[name] = loaded
        finally:
            self._coming = frozenset()

    def unload(self, name: str) -> None:
        """Let go of an adapter.

        Raises:
            InvalidRequestError: there is none of that name.
        """
        with self._lock:
            self.check(name)
            del self._loaded[name]
            self._forget()

    def check(self, name: str | None) -> None:
        """Raise InvalidRequestError unless requests may name this one."""
        if name is not None and name not in self._loaded:
            raise InvalidRequestError(f"The adapter {name!r} is not loaded; loaded: {self._list()}.")

    def use(self, name: str | None) -> None:
        """Have the transformer adapted by this one, or by none.

        Raises:
            InvalidRequestError: it is not loaded.
        """
        with self._lock:
            self.check(name)
            wanted = None if name is None else self._loaded[name]
            if wanted is not self._active or self._torn:
                self._switch(wanted)

    def _switch(self, wanted: _Loaded | None) -> None:
        adaptable = self._adaptable()
        updates = {} if wanted is None else wanted.lora.updates
        changing = self._changed | (updates.keys() & adaptable.slots.keys())
        self._changed, self._torn = frozenset(changing), True
        stored = _KeptPart(
            adaptable.stored.folder, adaptable.stored.headers, updates=updates, tensors=self._kept
        )
        slots = {key: adaptable.slots[key] for key in sorted(changing)}
        stored.rewrite(adaptable.module, slots, self._device)
        for key, value in (adaptable if wanted is None else wanted).folded.buffers.items():
            adaptable.module.get_buffer(key).copy_(value)
        self._active, self._torn = wanted, False
        self._changed = frozenset(updates.keys() & adaptable.slots.keys())
        self._forget()

    def _adaptable(self) -> Adaptable:
        if self._model.adaptable is None:
            raise InvalidRequestError("This model, or its backend, takes no adapters.")
        return self._model.adaptable

    def _read(self, adaptable: Adaptable, names: Sequence[str]) -> dict[str, Tensor]:
        """Copy stored weights to where they can be had quickly."""
        device, pinned = _place(self._device, adaptable, names)
        kept = {}
        for name, tensor in adaptable.stored.read(names, device):
            # On the CPU a tensor is a view of its file.
            own = tensor.clone() if tensor.device.type == "cpu" else tensor
            kept[name] = own.pin_memory() if pinned else own
        return kept

    def _forget(self) -> None:
        """Let go of what no adapter needs, whether it is loaded, in use or being read."""
        loaded = (each.lora.updates for each in self._loaded.values())
        needed = self._changed.union(self._coming, *loaded)
        self._kept = {name: tensor for name, tensor in self._kept.items() if name in needed}

    def _list(self) -> str:
        return ", ".join(self._loaded) or "none"


def _fold(adaptable: Adaptable, lora: Lora) -> Folded:
    """Fold anew where an adapter changes what is folded."""
    if lora.updates.keys() <= adaptable.slots.keys():
        return adaptable.folded
    return adaptable.fold(adaptable.stored.updated(lora.updates))


def _place(device: torch.device, adaptable: Adaptable, names: Sequence[str]) -> tuple[torch.device, bool]:
    """Where to keep stored weights, and whether to pin them."""
    if device.type != "cuda":
        return device, False
    elements = sum(torch.Size(adaptable.stored.headers[name].shape).numel() for name in names)
    free, _ = torch.cuda.mem_get_info(device)
    roomy = free > _ROOM * 2 * elements
    return (device, False) if roomy else (torch.device("cpu"), True)
