"""What a checkpoint says about itself in an optional ``twinshot.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twinshot_engine.checkpoint import Checkpoint
from twinshot_engine.errors import CheckpointError
from twinshot_engine.types import Size

_FILE = "twinshot.json"
_SMALLEST, _LARGEST = 256, 2048
_COMMON = ((1024, 1024), (768, 768), (512, 512), (256, 256))


@dataclass(frozen=True, slots=True)
class Sizes:
    """The image sizes a checkpoint draws: a list, or every multiple within bounds.

    Attributes:
        listed: the supported sizes, default first; with bounds, common examples among them.
        multiple: sides must be multiples of this many pixels; 0 if only ``listed`` is supported.
        largest: the longest side with bounds.
    """

    listed: tuple[Size, ...]
    multiple: int = 0
    largest: int = _LARGEST

    def __contains__(self, size: object) -> bool:
        if self.multiple == 0:
            return size in self.listed
        return isinstance(size, tuple) and all(
            _SMALLEST <= side <= self.largest and side % self.multiple == 0 for side in size
        )

    def __str__(self) -> str:
        if self.multiple:
            return f"multiples of {self.multiple} from {_SMALLEST} to {self.largest}"
        return ", ".join(f"{width}x{height}" for width, height in self.listed)


@dataclass(frozen=True, slots=True)
class Card:
    """Name, description, words and examples for people, and the supported sizes."""

    name: str
    sizes: Sizes
    description: str = ""
    vocabulary: Mapping[str, Any] = field(default_factory=dict)
    near: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    def advertise(self, sizes: tuple[Size, ...]) -> "Card":
        """Return this card for a server that draws ``sizes`` and no others.

        Raises:
            CheckpointError: the model cannot draw one of them, or there are none.
        """
        impossible = ", ".join(
            f"{width}x{height}" for width, height in sizes if (width, height) not in self.sizes
        )
        if impossible or not sizes:
            raise CheckpointError(f"Sizes {impossible or '()'} are not supported; supported: {self.sizes}.")
        return replace(self, sizes=Sizes(sizes))


def read_card(checkpoint: Checkpoint, *, multiple: int, longest_side: int) -> Card:
    """Read ``twinshot.json``, or make a card for a checkpoint without one.

    Args:
        checkpoint: where to look.
        multiple: pixels that the model's latents and patches divide a side by.
        longest_side: pixels beyond which the model has no positions.

    Raises:
        CheckpointError: the file is damaged, or lists a size the model cannot draw.
    """
    possible = _possible_sizes(multiple, min(longest_side, _LARGEST))
    path = checkpoint.folder / _FILE
    if not checkpoint.has(_FILE):
        return Card(checkpoint.name, possible)
    content = checkpoint.read_json(_FILE)
    own = checkpoint.home(_FILE) == checkpoint.folder  # a base tells of sizes, not of another's name
    return Card(
        name=str(content.get("name", checkpoint.name)) if own else checkpoint.name,
        sizes=_read_sizes(content["sizes"], possible, path) if "sizes" in content else possible,
        description=str(content.get("description", "")),
        vocabulary=_read_vocabulary(content.get("vocabulary", {}), path),
        near=_read_near(content.get("near", {}), path),
        examples=_read_examples(content.get("examples", []), path),
    )


def _possible_sizes(multiple: int, largest: int) -> Sizes:
    common = tuple(size for size in _COMMON if size[0] <= largest and size[0] % multiple == 0)
    return Sizes(common, multiple, largest)


def _read_sizes(value: Any, possible: Sizes, path: Path) -> Sizes:
    try:
        listed = tuple((int(width), int(height)) for width, height in value)
    except (TypeError, ValueError):
        raise CheckpointError(f"'{path}' has sizes {value!r}, not a list such as [[256, 256]].") from None
    impossible = [
        size
        for size in listed
        if any(side <= 0 or side % possible.multiple or side > possible.largest for side in size)
    ]
    if impossible or not listed:
        raise CheckpointError(f"'{path}' lists sizes {impossible}, but the model can draw {possible}.")
    return Sizes(listed)


def _read_vocabulary(value: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"'{path}' has a vocabulary of type {type(value).__name__}, not an object.")
    return dict(value)


def _read_near(value: Any, path: Path) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(known, str) for known in value.values()):
        raise CheckpointError(f"'{path}' has a 'near' that is not an object of texts.")
    return dict(value)


def _read_examples(value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(prompt, str) for prompt in value):
        raise CheckpointError(f"'{path}' has 'examples' that are not a list of texts.")
    return tuple(value)
