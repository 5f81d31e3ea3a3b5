"""Find the files of a part and read their headers; sharded files are held against their index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import listed, quoted, read_json
from twinshot_engine.tensor_files import Header, read_headers

_STEMS = ("diffusion_pytorch_model", "model")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def holds_weights(folder: Path) -> bool:
    """Whether the folder is a part's: its weights lie directly in it."""
    return any(
        (folder / f"{stem}.safetensors{index}").is_file() for stem in _STEMS for index in ("", ".index.json")
    )


def part_files(folder: Path) -> list[Path]:
    """Find the safetensors files of a part.

    Raises:
        CheckpointError: there are none, or the index names one that is not there.
    """
    for stem in _STEMS:
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return _shards(index)
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{quoted(folder)} holds only pickled weights ({pickled[0]}), which are never loaded: use "
            "safetensors."
        )
    raise CheckpointError(f"{quoted(folder / _STEMS[0])[:-1]}.safetensors' is missing.")


def all_headers(paths: Iterable[Path]) -> dict[str, Header]:
    """Read the headers of files that together hold one part, by the tensors' names there.

    Raises:
        CheckpointError: a file is damaged, or two hold the same tensor.
    """
    headers: dict[str, Header] = {}
    for path in paths:
        for header in read_headers(path):
            if (other := headers.setdefault(header.key, header)) is not header:
                raise CheckpointError(
                    f"{quoted(path)} and '{other.path.name}' both store {header.key!r}: remove the one that "
                    "does not belong there."
                )
    return headers


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{quoted(index)} has no weight_map.")
    by_file: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        by_file.setdefault(str(name), set()).add(key)
    for name, keys in sorted(by_file.items()):
        _check_shard(index, name, keys)
    return [index.parent / name for name in sorted(by_file)]


def _check_shard(index: Path, name: str, keys: set[str]) -> None:
    """Compare a shard with what the index says of it."""
    path = index.parent / name
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointError(f"{quoted(index)} names {name!r}, which is not a safetensors file beside it.")
    if not path.is_file():
        raise CheckpointError(
            f"{quoted(path)} is missing, though '{index.name}' names it: fetch the checkpoint again."
        )
    if lacking := sorted(keys - {header.key for header in read_headers(path)}):
        raise CheckpointError(
            f"{quoted(path)} lacks {listed(lacking)}, though '{index.name}' says that it is there: fetch the "
            "checkpoint again."
        )
