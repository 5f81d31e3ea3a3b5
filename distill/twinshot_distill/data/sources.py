"""Where samples come from: folders, webdataset archives, text files, the built-in world.

Every source tells its samples in a fixed order, and reads a picture only when it is asked to.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from twinshot_distill.errors import TrainingError
from twinshot_distill.runfile import DataSettings
from twinshot_distill.texts import read_text

if TYPE_CHECKING:
    from twinshot_distill.world.composer import Composer

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_READ = (*PICTURES, ".txt", ".jsonl", ".tar")
_CAPTION_KEYS = ("caption", "text", "prompt")


class SampleError(Exception):
    """One sample cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A caption and, where there is one, what reads its picture at a size: uint8 [H, W, 3]."""

    name: str
    caption: str
    picture: Callable[[int, int], Tensor] | None


def find_samples(settings: DataSettings) -> Iterator[Sample]:
    """Tell the samples of a source in order.

    Raises:
        TrainingError: there is no such source, or nothing in it.
    """
    if settings.kind == "composer":
        return _composed(settings.count or 0)
    path = settings.path or Path()
    if not path.exists():
        raise TrainingError(f"data.path '{path}' does not exist.")
    readers = {"folder": _from_folder, "shards": _from_shards, "prompts": _from_prompts}
    return readers[settings.kind](path)


def listing(settings: DataSettings) -> str:
    """A digest of the names and sizes of a source's files: another one tells that something was changed.

    "" for the composer, and where the source is not there (any more).
    """
    path = settings.path
    if settings.kind == "composer" or path is None or not path.exists():
        return ""
    digest = sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        # The cache may lie in the same folder; its files are of other kinds.
        if file == path or (file.suffix.lower() in _READ and file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n".encode())
    return digest.hexdigest()


def crop(picture: Image.Image, width: int, height: int) -> Tensor:
    """The middle of a picture, scaled to fill width and height: uint8 [H, W, 3]."""
    whole = ImageOps.exif_transpose(picture).convert("RGB")
    fitted = ImageOps.fit(whole, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).copy())


def _decode(read: Callable[[], bytes], width: int, height: int) -> Tensor:
    try:
        with Image.open(io.BytesIO(read())) as picture:
            return crop(picture, width, height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SampleError(f"its picture cannot be read: {error}") from error


def _reader(read: Callable[[], bytes]) -> Callable[[int, int], Tensor]:
    return lambda width, height: _decode(read, width, height)


def _from_folder(path: Path) -> Iterator[Sample]:
    """Pictures with a caption in a text file of the same name, or in `metadata.jsonl` (file_name, text)."""
    listed = _metadata(path / "metadata.jsonl")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
    if not found:
        raise TrainingError(f"'{path}' holds no pictures ({', '.join(PICTURES)}).")
    for picture in found:
        name = picture.relative_to(path).as_posix()
        beside = picture.with_suffix(".txt")
        caption = listed.get(name) or (beside.read_text(errors="replace") if beside.is_file() else "")
        yield Sample(name, caption.strip(), _reader(picture.read_bytes))


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            captions[str(entry["file_name"])] = _caption_in(entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"'{path}', line {number}, is not an object with file_name: {error}."
            ) from error
    return captions


def _caption_in(entry: Mapping[str, Any]) -> str:
    return next((str(entry[key]) for key in _CAPTION_KEYS if entry.get(key)), "")


def _from_shards(path: Path) -> Iterator[Sample]:
    """Webdataset archives: members of one key are a sample, such as 0001.jpg with 0001.txt or 0001.json."""
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards:
        raise TrainingError(f"'{path}' holds no archives (*.tar).")
    for shard in shards:
        try:
            with tarfile.open(shard) as archive:
                yield from _from_archive(shard.name, archive)
                _check_end(archive)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise TrainingError(f"'{shard}' is damaged or no tar archive: {error}.") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """See that zeros end an archive: tarfile also takes a file's end or a broken header for it."""
    if (file := archive.fileobj) is not None:
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off at byte {archive.offset}; copy it again")


def _from_archive(shard: str, archive: tarfile.TarFile) -> Iterator[Sample]:
    key, parts = "", dict[str, bytes]()
    for member in archive:
        if not member.isfile():
            continue
        stem, _, ending = member.name.partition(".")
        if stem != key and parts:
            yield _assembled(f"{shard}/{key}", parts)
            parts = {}
        file = archive.extractfile(member)
        key, parts[f".{ending.lower()}"] = stem, file.read() if file else b""
    if parts:
        yield _assembled(f"{shard}/{key}", parts)


def _assembled(name: str, parts: Mapping[str, bytes]) -> Sample:
    blob = next((parts[ending] for ending in PICTURES if ending in parts), b"")
    caption = parts.get(".txt", b"").decode(errors="replace")
    if not caption and ".json" in parts:
        try:
            caption = _caption_in(json.loads(parts[".json"]))
        except (ValueError, AttributeError):
            caption = ""
    return Sample(name, caption.strip(), _reader(lambda: blob))


def _from_prompts(path: Path) -> Iterator[Sample]:
    """A text file of one prompt a line, or JSON lines with prompt, text or caption; blank lines are none."""
    for number, line in enumerate(read_text(path, "replace").splitlines(), 1):
        words = line.strip()
        if not words:
            continue
        if words.startswith("{"):
            try:
                words = _caption_in(json.loads(words)).strip()
            except ValueError as error:
                raise TrainingError(f"'{path}', line {number}, is not JSON: {error}.") from error
        yield Sample(f"line {number}", words, None)


@cache
def _composer() -> Composer:
    from twinshot_distill.world.composer import Composer

    return Composer("cpu", scene_variations=4, plain_variations=4)


def _composed(count: int) -> Iterator[Sample]:
    """Scenes of the built-in world, drawn on the CPU."""
    from twinshot_distill.world.captions import caption
    from twinshot_distill.world.composer import arrange
    from twinshot_distill.world.scenes import Scene, sample_training_scene

    composer = _composer()

    def drawn(scene: Scene, seed: str) -> Callable[[int, int], Tensor]:
        def draw(width: int, height: int) -> Tensor:
            pixels = composer.render(arrange(Random(seed), [scene]))[0]
            tones = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
            return crop(Image.fromarray(tones), width, height)

        return draw

    for index in range(count):
        rng = Random(f"composer-{index}")
        scene = sample_training_scene(rng)
        yield Sample(f"scene {index}", caption(rng, scene), drawn(scene, f"arrange-{index}"))
