"""A transformer stored alone: one file, or a part's folder; every other part comes from a base checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinshot_engine.checkpoint import TRANSFORMER, Checkpoint
from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted, read_json
from twinshot_engine.tensor_files import Header
from twinshot_engine.weights import StoredPart

_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class TransformerFile(Checkpoint):
    """A checkpoint of a transformer alone; ``folder`` is the file, or the folder of its shards.

    Attributes:
        headers: of its tensors, under diffusers' names.
        pipeline: its family, as an index would name it.
        usual_base: a checkpoint that has the other parts, for people.
    """

    headers: Mapping[str, Header] = field(default_factory=dict)
    pipeline: str = ""
    usual_base: str = ""

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.folder.name if self.folder.is_dir() else self.folder.stem

    @property
    def family(self) -> str:
        """As the tensors' names tell."""
        return self.pipeline

    def home(self, name: str) -> Path:
        """The base's.

        Raises:
            CheckpointError: there is no base.
        """
        if self.base is None:
            raise CheckpointError(
                f"{quoted(self.folder)} holds a transformer alone: name a base (--base) that {name!r} comes "
                f"from, such as {self.usual_base!r}."
            )
        return self.base.home(name)

    def read_json(self, *path: str) -> dict[str, Any]:
        """Read one JSON object; the transformer's config is its own, where it has one."""
        own = self.folder / _CONFIG
        return (
            read_json(own)
            if path == (TRANSFORMER, _CONFIG) and own.is_file()
            else read_json(self.home(path[0]).joinpath(*path))
        )

    def find_part(self, name: str) -> StoredPart:
        """Read the headers of a part's weights; the transformer's are known already."""
        return (
            StoredPart(self.folder, self.headers) if name == TRANSFORMER else Checkpoint.find_part(self, name)
        )
