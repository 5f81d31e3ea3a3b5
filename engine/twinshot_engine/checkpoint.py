"""Find a checkpoint in diffusers' folder layout and read its JSON files.

A checkpoint is data from elsewhere: whatever is wrong with it becomes one :class:`CheckpointError` that
names the file. Nothing in it is ever unpickled or executed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from twinshot_engine.config import BUILTIN
from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import quoted, read_json, tell
from twinshot_engine.weights import StoredPart, find_part

BUILTIN_FOLDER = Path(__file__).parent / "builtin" / "miniature"

_HUB_ID = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<subfolder>[\w.-]+(?:/[\w.-]+)*))?(?:@(?P<revision>[\w./-]+))?"
)
_SUFFIXES = ("json", "safetensors", "txt", "jinja")
_Built = TypeVar("_Built")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A local folder, the reference it was found by, and its Hub commit if it has one."""

    folder: Path
    reference: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """What to call it where its card does not say."""
        return self.folder.name

    @property
    def family(self) -> str:
        """The pipeline class that ``model_index.json`` names."""
        return str(self.read_json("model_index.json").get("_class_name"))

    def read_json(self, *path: str) -> dict[str, Any]:
        """Read one JSON object.

        Raises:
            CheckpointError: the file is missing or not a JSON object.
        """
        return read_json(self.folder.joinpath(*path))

    def has(self, *path: str) -> bool:
        """Whether there is such a file."""
        return self.folder.joinpath(*path).is_file()

    def part(
        self,
        name: str,
        *,
        rename: Callable[[str], str] = lambda name: name,
        ignored: Callable[[str], bool] = lambda _name: False,
    ) -> StoredPart:
        """Read the headers of a part's weights; see :func:`~twinshot_engine.weights.find_part`."""
        return find_part(self.folder / name, rename=rename, ignored=ignored)

    def tokenizer(self, name: str = "tokenizer", *, chat: bool = True) -> Any:
        """Load a tokenizer.

        Args:
            name: its folder.
            chat: whether it must have a chat template.

        Raises:
            CheckpointError: it is missing, damaged or has no template.
        """
        folder = self.folder / name
        if not folder.is_dir():
            raise CheckpointError(f"{quoted(folder)} is missing.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
            raise CheckpointError(f"{quoted(folder)} holds no usable tokenizer: {tell(error)}.") from error
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
            return build(config)
        except Exception as error:  # a config holds foreign values, and each may break something else
            raise CheckpointError(
                f"{quoted(self.folder / part / 'config.json')} cannot be used: {tell(error)}."
            ) from error


def find_checkpoint(reference: str) -> Checkpoint:
    """Find what ``EngineConfig.checkpoint`` names, downloading it from the Hub if need be.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be downloaded.
    """
    if reference == BUILTIN:
        return _find_builtin()
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return Checkpoint(folder.resolve(), reference)
    match = _HUB_ID.fullmatch(reference)
    if match is None or ".." in reference.split("/") or reference.startswith((".", "/", "~")):
        raise CheckpointError(
            f"There is no folder {reference!r}, and it is not a Hub id: 'org/name[/subfolder][@revision]'."
        )
    return _download(reference, match["repository"], match["subfolder"], match["revision"])


def _find_builtin() -> Checkpoint:
    if not (BUILTIN_FOLDER / "model_index.json").is_file():
        raise CheckpointError(
            f"The built-in checkpoint is not part of this installation: {BUILTIN_FOLDER} is missing."
        )
    return Checkpoint(BUILTIN_FOLDER, BUILTIN)


def _download(reference: str, repository: str, subfolder: str | None, revision: str | None) -> Checkpoint:
    inside = f"{subfolder}/" if subfolder else ""
    wanted = [f"{inside}{depth}*.{suffix}" for depth in ("", "*/") for suffix in _SUFFIXES]
    try:
        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the Hub client raises its own errors, its HTTP library's and OSError
        raise CheckpointError(f"{reference!r} cannot be fetched from the Hub: {tell(error)}.") from error
    folder = snapshot / subfolder if subfolder else snapshot
    if not folder.is_dir():
        raise CheckpointError(f"{repository!r} has no folder {subfolder!r}.")
    # The Hub client keeps a snapshot in a folder named after its commit.
    return Checkpoint(folder, reference, snapshot.name)
