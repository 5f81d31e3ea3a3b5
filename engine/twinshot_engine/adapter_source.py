"""Where an adapter comes from: ``[name=]path or Hub id[:scale]``, and the file that this means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted
from twinshot_engine.hub import parse_hub_id
from twinshot_engine.tensor_files import SAFETENSORS

_SOURCE = re.compile(
    r"(?:(?P<name>[A-Za-z0-9._-]{1,64})=)?(?P<place>.+?)(?::(?P<scale>-?[0-9]+(\.[0-9]+)?))?"
)
_USUAL_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_CONFIG = "adapter_config.json"


class AdapterSource(NamedTuple):
    """An adapter to load.

    Attributes:
        name: by which requests choose it; None has it merged into the weights for good.
        place: a safetensors file, a folder with one, or a Hub id of either.
        scale: its strength; 1 as it was trained.
    """

    name: str | None
    place: str
    scale: float

    @classmethod
    def parse(cls, text: str) -> AdapterSource:
        """Read ``[name=]place[:scale]``.

        Raises:
            ValueError: there is no place.
        """
        match = _SOURCE.fullmatch(text)
        if match is None:
            raise ValueError(f"adapter {text!r} is not of the form name=path[:scale] or path[:scale]")
        return cls(match["name"], match["place"], float(match["scale"] or 1))

    def find(self) -> Path:
        """Find the file, downloading it if need be.

        Raises:
            CheckpointError: there is none, or several, or it is no safetensors file.
        """
        path = Path(self.place).expanduser()
        if not path.exists():
            path = self._fetch()
        if path.is_dir():
            path = _only_file(path)
        if path.suffix != SAFETENSORS:
            raise CheckpointError(f"{quoted(path)} does not end in {SAFETENSORS}: nothing else is read.")
        return path

    def _fetch(self) -> Path:
        hub_id = parse_hub_id(self.place)
        if hub_id is None:
            raise CheckpointError(
                f"There is no adapter {self.place!r}, and it is not a Hub id: "
                "'org/name[/folder or file][@revision]'."
            )
        if hub_id.names_file:
            file, _ = hub_id.fetch_file()
            return file
        return hub_id.fetch([hub_id.inside(name) for name in (*_USUAL_NAMES, _CONFIG)]) / hub_id.path


def _only_file(folder: Path) -> Path:
    for name in _USUAL_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob(f"*{SAFETENSORS}"))
    if len(found) != 1:
        raise CheckpointError(
            f"{quoted(folder)} holds {len(found)} safetensors files, none of them "
            f"{' or '.join(_USUAL_NAMES)}: name the adapter's file."
        )
    return found[0]
