"""A checkpoint in diffusers' folder layout: its parts and its JSON files.

A checkpoint is data from elsewhere: whatever is wrong with it becomes one :class:`CheckpointError` that
names the file. Nothing in it is ever unpickled or executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import INDEX, quoted, read_json, remedy, tell
from twinshot_engine.stored_parts import all_headers, part_files
from twinshot_engine.weights import StoredPart

TRANSFORMER = "transformer"
"""The folder of the part that files hold alone, and that adapters change."""

BUILTIN_FOLDER = Path(__file__).parent / "builtin" / "miniature"

_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model")
"""Files of a tokenizer's words, of which it needs one."""

_MOST_LAYERS = 1000
"""So many are built within seconds."""

_Built = TypeVar("_Built")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A local folder, and what it was found by.

    Attributes:
        folder: holds a folder for each part.
        reference: by which it was found.
        revision: its Hub commit, if it has one.
        base: the checkpoint that parts come from whose folders are missing here, if any.
        merge: what is done to the transformer before anything reads it, such as merging adapters.
        redirect: may exchange a part for one whose weights go elsewhere than into memory.
    """

    folder: Path
    reference: str
    revision: str | None = None
    base: Checkpoint | None = None
    merge: Callable[[StoredPart], StoredPart] = lambda stored: stored
    redirect: Callable[[StoredPart], StoredPart] = lambda part: part

    @property
    def name(self) -> str:
        """What to call it where its card does not say."""
        return self.folder.name

    @property
    def family(self) -> str:
        """The pipeline class that ``model_index.json`` names."""
        return str(self.read_json(INDEX).get("_class_name"))

    def read_json(self, *path: str) -> dict[str, Any]:
        """Read one JSON object.

        Raises:
            CheckpointError: the file is missing or not a JSON object.
        """
        return read_json(self.home(path[0]).joinpath(*path))

    def has(self, *path: str) -> bool:
        """Whether there is such a file."""
        return self.home(path[0]).joinpath(*path).is_file()

    def home(self, name: str) -> Path:
        """The folder that a part's folder, or a file, lies in: this one, or the base's if it lies there."""
        if self.base is None or (self.folder / name).exists():
            return self.folder
        return self.base.home(name)

    def part(
        self,
        name: str,
        *,
        rename: Callable[[str], str] = lambda name: name,
        ignored: Callable[[str], bool] = lambda _name: False,
    ) -> StoredPart:
        """Read the headers of a part's weights.

        Args:
            name: its folder.
            rename: from a tensor's name in the file to the name it is known by here.
            ignored: names of tensors that are known and not needed.

        Raises:
            CheckpointError: a file is missing, damaged, or not what its index says.
        """
        stored = self.find_part(name)
        headers = {rename(key): header for key, header in stored.headers.items()}
        named = replace(stored, headers=headers, ignored=ignored)
        return self.redirect(self.merge(named) if name == TRANSFORMER else named)

    def find_part(self, name: str) -> StoredPart:
        """Read the headers of a part's weights, under their own names; see :meth:`part`."""
        folder = self.home(name) / name
        return StoredPart(folder, all_headers(part_files(folder)))

    def tokenizer(self, name: str = "tokenizer", *, chat: bool = True) -> Any:
        """Load a tokenizer.

        Args:
            name: its folder.
            chat: whether it must have a chat template.

        Raises:
            CheckpointError: it is missing, damaged or has no template.
        """
        folder = self.home(name) / name
        file = folder / "tokenizer.json"
        if not folder.is_dir():
            raise CheckpointError(f"{quoted(folder)} is missing: {remedy(file)}.")
        if not any(each.is_file() for pattern in _TOKENIZERS for each in folder.glob(pattern)):
            raise CheckpointError(f"{quoted(file)} is missing: {remedy(file)}.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            raise CheckpointError(
                f"{quoted(folder)} holds no usable tokenizer: {tell(error)}; {remedy(file)}."
            ) from error
        if chat and not getattr(tokenizer, "chat_template", None):
            raise CheckpointError(f"{quoted(folder)} has no chat template.")
        return tokenizer

    def build(self, part: str, build: Callable[[dict[str, Any]], _Built]) -> _Built:
        """Build something from a part's ``config.json``.

        Raises:
            CheckpointError: the config is missing or ``build`` cannot use it.
        """
        config = self.read_json(part, "config.json")
        try:
            _check_layers(config)
            return build(config)
        except Exception as error:  # a config holds foreign values, and each may break something else
            raise CheckpointError(
                f"{quoted(self.home(part) / part / 'config.json')} cannot be used: {tell(error)}."
            ) from error


def _check_layers(config: Mapping[str, Any]) -> None:
    """Raise ValueError for what would take minutes to build."""
    for key, value in config.items():
        if ("layers" in key or "blocks" in key) and isinstance(value, int) and value > _MOST_LAYERS:
            raise ValueError(f"{key} {value} is not supported: up to {_MOST_LAYERS} are")
