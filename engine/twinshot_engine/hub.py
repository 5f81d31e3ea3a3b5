"""Fetch checkpoints from the Hugging Face Hub, or from its cache where there is no network."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import INDEX, read_json, tell
from twinshot_engine.stored_parts import VARIANTS, file_names, holds_weights
from twinshot_engine.tensor_files import SUFFIXES

_HUB_ID = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<path>[\w.-]+(?:/[\w.-]+)*))?(?:@(?P<revision>[\w./-]+))?"
)
_CARD = "twinshot.json"
_SMALL = ("json", "txt", "jinja")
"""Endings of configs, indexes of shards, and what tokenizers are read from."""


class HubId(NamedTuple):
    """``org/name[/folder or file][@revision]``, taken apart."""

    reference: str
    repository: str
    path: str
    revision: str | None

    @property
    def names_file(self) -> bool:
        """Whether it names one file of weights rather than a folder."""
        return self.path.endswith(SUFFIXES)

    def inside(self, path: str) -> str:
        """A path in the repository as seen from its root."""
        return f"{self.path}/{path}" if self.path else path

    def beneath(self, folder: str) -> HubId:
        """The id of a folder in this one."""
        path, revision = self.inside(folder), f"@{self.revision}" if self.revision else ""
        return self._replace(reference=f"{self.repository}/{path}{revision}", path=path)

    def fetch(self, patterns: Sequence[str]) -> Path:
        """Fetch the files that match and return the snapshot's folder, named after its commit.

        Raises:
            CheckpointError: the repository cannot be reached, and is not cached.
        """
        try:
            folder = snapshot_download(self.repository, revision=self.revision, allow_patterns=list(patterns))
        except Exception as error:  # the Hub client raises its own errors, its HTTP library's and OSError
            raise CheckpointError(self._why_not(error)) from error
        return Path(folder)

    def _why_not(self, error: Exception) -> str:
        if constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError):
            return (
                f"{self.reference!r} is not, or not as a whole, in the Hub client's cache "
                f"'{constants.HF_HUB_CACHE}', and nothing is downloaded here (HF_HUB_OFFLINE): fetch it with "
                "'twinshot generate' or 'twinshot serve' and that variable unset, or name a folder."
            )
        return (
            f"{self.reference!r} cannot be fetched from the Hub: {tell(error)}; without a network, name a "
            "folder."
        )

    def fetch_folder(self, without_weights_of: Collection[str] = ()) -> tuple[Path, HubId]:
        """Fetch a checkpoint; a folder without an index stands for the only one in it that has one.

        Args:
            without_weights_of: parts that are not needed of it but for their configs.

        Returns:
            The checkpoint's folder and its id.

        Raises:
            CheckpointError: it cannot be fetched, or has no index, or several.
        """
        snapshot = self.fetch([self.inside(f"*{INDEX}")])
        folder = snapshot / self.path
        if self.path and not folder.is_dir():
            raise CheckpointError(f"{self.repository!r} has no folder {self.path!r}.")
        if not (folder / INDEX).is_file():
            only = only_checkpoint(folder, self.reference)
            if only is None:
                raise CheckpointError(
                    f"{self.reference!r} has no {INDEX}: if it holds a transformer alone, name its file, "
                    f"such as '{self.repository}/{self.inside('file.safetensors')}'."
                )
            return self.beneath(only).fetch_folder(without_weights_of)
        parts = part_names(read_json(folder / INDEX))
        small = [f"{part}/*.{kind}" for part in parts for kind in _SMALL]
        folder = self.fetch([self.inside(name) for name in (INDEX, _CARD, *small)]) / self.path
        self._fetch_weights(folder, [part for part in parts if part not in without_weights_of])
        return folder, self

    def _fetch_weights(self, folder: Path, parts: Sequence[str]) -> None:
        """Fetch the weights of parts whose configs are in ``folder``: of each in one variant alone.

        Repositories hold much beside what a checkpoint needs: other precisions of a part, and all of it
        in one file for other programs. Which variant there is shows only where another one was not.
        """
        left = [part for part in parts if (folder / part / "config.json").is_file()]
        for variant in VARIANTS:
            if not left:
                return
            self.fetch(
                [
                    self.inside(f"{part}/{name}")
                    for part in left
                    for name in file_names(folder / part, variant)
                ]
            )
            left = [part for part in left if not holds_weights(folder / part, [variant])]

    def fetch_file(self) -> tuple[Path, str]:
        """Fetch the file that is named; its path and the commit.

        Raises:
            CheckpointError: it cannot be fetched, or there is none.
        """
        snapshot = self.fetch([self.path])
        if not (snapshot / self.path).is_file():
            raise CheckpointError(f"{self.repository!r} has no file {self.path!r}.")
        return snapshot / self.path, snapshot.name


def parse_hub_id(reference: str) -> HubId | None:
    """Take an id apart; None if it is none."""
    match = _HUB_ID.fullmatch(reference)
    if match is None or ".." in reference.split("/") or reference.startswith((".", "/", "~")):
        return None
    return HubId(reference, match["repository"], match["path"] or "", match["revision"])


def part_names(index: Mapping[str, object]) -> list[str]:
    """The parts that a ``model_index.json`` names; those that a checkpoint was saved without are null."""
    return [name for name, value in index.items() if isinstance(value, list) and any(value)]


def only_checkpoint(folder: Path, reference: str) -> str | None:
    """The path of the only checkpoint up to two folders deep in ``folder``; None if there is none.

    Raises:
        CheckpointError: there are several.
    """
    found = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{INDEX}"))
    names = [path.relative_to(folder).as_posix() for path in found]
    if len(names) > 1:
        repository, at, revision = reference.partition("@")
        choices = ", ".join(repr(f"{repository}/{name}{at}{revision}") for name in names)
        raise CheckpointError(f"{reference!r} holds several checkpoints: name one of {choices}.")
    return names[0] if names else None
