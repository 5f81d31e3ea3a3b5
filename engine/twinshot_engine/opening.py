"""From what a user names to a checkpoint: a folder, a file or a Hub id, completed by a base."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.checkpoint import BUILTIN_FOLDER, TRANSFORMER, Checkpoint
from twinshot_engine.config import BUILTIN
from twinshot_engine.errors import CheckpointError
from twinshot_engine.families import FAMILIES, find_family
from twinshot_engine.families.repacked import Headers, Repack, strip_prefix
from twinshot_engine.files import INDEX, listed, quoted
from twinshot_engine.hub import HubId, only_checkpoint, parse_hub_id
from twinshot_engine.lora import find_lora
from twinshot_engine.random_weights import PREFIX, find_random
from twinshot_engine.stored_parts import all_headers, holds_weights, part_files
from twinshot_engine.tensor_files import SUFFIXES
from twinshot_engine.transformer_file import TransformerFile
from twinshot_engine.weights import StoredPart

_PART = re.compile(r"(text_encoder|tokenizer|transformer|vae)(_\d)?")
"""Parts' folders."""


def find_checkpoint(
    reference: str, base: str | None = None, adapters: Sequence[AdapterSource] = ()
) -> Checkpoint:
    """Find what ``EngineConfig.checkpoint`` names, downloading it from the Hub if need be.

    Args:
        reference: see :class:`~twinshot_engine.config.EngineConfig`.
        base: likewise; supplies the parts that are missing.
        adapters: to be merged into the transformer as it is read.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be downloaded, or the base is
            of another family.
    """
    found = _find(reference, base)
    return replace(found, merge=partial(_merge, found, adapters)) if adapters else found


def _merge(checkpoint: Checkpoint, adapters: Sequence[AdapterSource], stored: StoredPart) -> StoredPart:
    repack = find_family(checkpoint).repack
    for source in adapters:
        lora = find_lora(source, stored.headers, repack.translate if repack else dict)
        stored = stored.updated(lora.updates)
    return stored


def _find(reference: str, base: str | None) -> Checkpoint:
    if reference.startswith(PREFIX):
        return find_random(reference)
    if reference == BUILTIN:
        return _find_builtin()
    path = Path(reference).expanduser()
    if path.is_dir():
        return _open_folder(path.resolve(), reference, base)
    if path.is_file():
        return _open_transformer(path.resolve(), reference, None, base)
    hub_id = parse_hub_id(reference)
    if hub_id is None:
        raise CheckpointError(
            f"There is no folder or file {reference!r}, and it is not a Hub id: "
            "'org/name[/folder or file][@revision]'."
        )
    return _fetch(hub_id, base)


def _find_builtin() -> Checkpoint:
    if not (BUILTIN_FOLDER / INDEX).is_file():
        raise CheckpointError(
            f"The built-in checkpoint is not part of this installation: {BUILTIN_FOLDER} is missing."
        )
    return Checkpoint(BUILTIN_FOLDER, BUILTIN)


def _open_folder(folder: Path, reference: str, base: str | None) -> Checkpoint:
    if (folder / INDEX).is_file():
        return _complete(Checkpoint(folder, reference), base)
    if only := only_checkpoint(folder, reference):
        return _complete(Checkpoint(folder / only, f"{reference.rstrip('/')}/{only}"), base)
    if holds_weights(folder):
        return _open_transformer(folder, reference, None, base)
    if _parts_in(folder):
        return _complete(Checkpoint(folder, reference), base)
    file = _only_file(folder)
    return _open_transformer(file, f"{reference.rstrip('/')}/{file.name}", None, base)


def _parts_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and _PART.fullmatch(path.name)}


def _only_file(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(files) != 1:
        names = [path.name for path in files] or sorted(path.name for path in folder.iterdir())
        raise CheckpointError(
            f"{quoted(folder)} has no {INDEX}, part's folder or only file of a transformer, but "
            f"{listed(names) or 'nothing'}: name a folder in diffusers' layout, or a transformer's file."
        )
    return files[0]


def _fetch(hub_id: HubId, base: str | None) -> Checkpoint:
    if hub_id.names_file:
        file, revision = hub_id.fetch_file()
        return _open_transformer(file, hub_id.reference, revision, base)
    folder, found = hub_id.fetch_folder()
    depth = len(Path(found.path).parts)
    commit = [folder, *folder.parents][depth].name  # the Hub client names a snapshot after its commit
    return _complete(Checkpoint(folder, found.reference, commit), base)


def _complete(checkpoint: Checkpoint, base: str | None) -> Checkpoint:
    """Have a base supply the parts whose folders are missing."""
    if base is None:
        return checkpoint
    present = _parts_in(checkpoint.folder)
    if not present:
        raise CheckpointError(
            f"{quoted(checkpoint.folder)} has no part's folder, so all would be the base's: name a "
            "folder that has one, or the base alone."
        )
    supplied = find_base(base, present)
    if (checkpoint.folder / INDEX).is_file() and checkpoint.family != supplied.family:
        raise _other_family(quoted(checkpoint.folder), checkpoint.family, supplied)
    return replace(checkpoint, base=supplied)


def find_base(reference: str, present: Collection[str]) -> Checkpoint:
    """Find a base without downloading the weights of the parts that are ``present`` already.

    Raises:
        CheckpointError: as :func:`find_checkpoint`.
    """
    hub_id = parse_hub_id(reference)
    if hub_id is None or Path(reference).expanduser().exists():
        return find_checkpoint(reference)
    folder, found = hub_id.fetch_folder(present)
    return Checkpoint(folder, found.reference)


def _open_transformer(path: Path, reference: str, revision: str | None, base: str | None) -> Checkpoint:
    if path.is_file() and path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{quoted(path)} does not end in {' or '.join(SUFFIXES)}: nothing else is read."
        )
    stored = strip_prefix(all_headers([path] if path.is_file() else part_files(path)))
    pipeline, repack, headers = _recognise(path, stored)
    supplied = None if base is None else find_base(base, {TRANSFORMER})
    if supplied is not None and supplied.family != pipeline:
        raise _other_family(quoted(path), pipeline, supplied, f", such as {repack.base!r}")
    return TransformerFile(
        path,
        reference,
        revision,
        supplied,
        headers=headers,
        pipeline=pipeline,
        usual_base=repack.base,
    )


def _recognise(path: Path, stored: Headers) -> tuple[str, Repack, Headers]:
    """Find the family whose transformer a file holds, and name its tensors as diffusers does."""
    for pipeline, repack in _repacks():
        headers = repack.translate(stored)
        if repack.marks <= headers.keys():
            return pipeline, repack, headers
    known = ", ".join(pipeline for pipeline, _ in _repacks())
    raise CheckpointError(
        f"{quoted(path)} holds no transformer that is known, but {listed(sorted(stored))}: "
        f"those of {known} are."
    )


def _repacks() -> list[tuple[str, Repack]]:
    """Of every family, those with more marks first: another's marks may be some of theirs."""
    found = [(name, family.repack) for name, family in FAMILIES.items() if family.repack is not None]
    return sorted(found, key=lambda entry: -len(entry[1].marks))


def _other_family(what: str, family: str, base: Checkpoint, remedy: str = "") -> CheckpointError:
    return CheckpointError(
        f"{what} is of {family}, but the base {base.reference!r} of {base.family}: name a base of the same "
        f"family{remedy}."
    )
