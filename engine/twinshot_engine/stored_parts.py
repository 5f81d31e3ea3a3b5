"""Find the files of a part and read their headers; sharded files are held against their index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from twinshot_engine.errors import CheckpointError
from twinshot_engine.files import listed, quoted, read_json, remedy
from twinshot_engine.tensor_files import Header, read_headers

_STEMS = ("diffusion_pytorch_model", "model")
"""What weights' files are called by diffusers, and by transformers, which writes the text encoders."""

_TEXT_ENCODER = "text_encoder"
VARIANTS = ("", "bf16", "fp16")
"""Which copies of a part are read, the first that is there: the plain one, or one in half precision."""

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def holds_weights(folder: Path, variants: Sequence[str] = VARIANTS) -> bool:
    """Whether the folder is a part's: its weights, or their index, lie directly in it."""
    return _find(folder, variants) is not None


def file_names(folder: Path, variant: str) -> list[str]:
    """The names that a part's weights may have in one of :data:`VARIANTS`: its index, if there, says which.

    Raises:
        CheckpointError: the index is damaged.
    """
    found = _find(folder, [variant])
    if found is not None and found.suffix == ".json":
        return sorted(_names_by_file(found))
    return [_single(stem, variant) for stem in _STEMS]


def part_files(folder: Path) -> list[Path]:
    """Find the safetensors files of a part, in the first of :data:`VARIANTS` that is there.

    Raises:
        CheckpointError: there are none, or the index names one that is not there.
    """
    found = _find(folder, VARIANTS)
    if found is not None:
        return _shards(found) if found.suffix == ".json" else [found]
    if broken := sorted(each for each in folder.glob("*.safetensors*") if not each.exists()):
        raise CheckpointError(
            f"{quoted(broken[0])} is a link to a file that is gone: fetch the checkpoint again."
        )
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{quoted(folder)} holds only pickled weights ({pickled[0]}), which are never loaded: use "
            "safetensors."
        )
    path = folder / _single(_STEMS[folder.name.startswith(_TEXT_ENCODER)], "")
    others = sorted(each.name for each in folder.glob("*.safetensors") if each.is_file())
    if others:
        raise CheckpointError(
            f"{quoted(path)} is missing; {listed(others)} there has a name that is not read: give the file "
            "that holds the whole part this name, or add the index of its shards."
        )
    raise CheckpointError(f"{quoted(path)} is missing: {remedy(path)}.")


def _find(folder: Path, variants: Sequence[str]) -> Path | None:
    """The index of a part's shards, or its only file, in the first variant that is there."""
    names = (
        name
        for variant in variants
        for stem in _STEMS
        for name in (_index(stem, variant), _single(stem, variant))
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _single(stem: str, variant: str) -> str:
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def _index(stem: str, variant: str) -> str:
    return f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"


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
    by_file = _names_by_file(index)
    held = sum(_check_shard(index, name, keys) for name, keys in sorted(by_file.items()))
    _check_size(index, held)
    return [index.parent / name for name in sorted(by_file)]


def _names_by_file(index: Path) -> dict[str, set[str]]:
    """The names of the tensors that an index says are in each file."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{quoted(index)} has no weight_map: fetch it again.")
    by_file: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        by_file.setdefault(str(name), set()).add(key)
    return by_file


def _check_size(index: Path, held: int) -> None:
    """Compare the bytes of all tensors with the index's ``total_size``, where it has one.

    Some writers count a tensor that two modules share twice, and no type is given for each tensor; so what
    is refused is a total that is less than the headers say, or twice as much and more.
    """
    metadata = read_json(index).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    if isinstance(total, int | float) and not held <= total < 2 * held:
        raise CheckpointError(
            f"{quoted(index)} says that its tensors take {total} bytes in all (total_size), but the headers "
            f"of the files that it names say {held}: they must be of one download; fetch them again."
        )


def _check_shard(index: Path, name: str, keys: set[str]) -> int:
    """Compare a shard with what the index says of it; the bytes of the tensors that are said to be there."""
    path = index.parent / name
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointError(f"{quoted(index)} names {name!r}, which is not a safetensors file beside it.")
    if not path.is_file():
        raise CheckpointError(
            f"{quoted(path)} is missing, though '{index.name}' names it: fetch the checkpoint again."
        )
    headers = {header.key: header for header in read_headers(path)}
    if lacking := sorted(keys - headers.keys()):
        raise CheckpointError(
            f"{quoted(path)} lacks {listed(lacking)}, though '{index.name}' says that it is there: fetch the "
            "checkpoint again."
        )
    return sum(headers[key].bytes for key in keys)
