"""Latents and embeddings of all samples on disk, made once: training reads neither pictures nor encoders.

CACHE/part-00000.safetensors   latents [C, h, w] bf16 and embeddings of some samples
CACHE/cache.json               what it was made of, how far it is, and what was skipped
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from twinshot_distill.data.sources import Sample, SampleError, find_samples, listing
from twinshot_distill.errors import TrainingError
from twinshot_distill.families.base import Embedding, Encoders
from twinshot_distill.report import say
from twinshot_distill.runfile import DataSettings
from twinshot_distill.tensor_files import save_tensors

_PART = 256
_NAMED = 20
_SHOWN = 40


@dataclass
class _Progress:
    """What `cache.json` says.

    Attributes:
        made_of: the settings and checkpoint; others make another cache.
        latent_shape: [C, h, w].
        parts: samples of each part.
        read: samples of the source that were read, usable or not.
        skipped: how many of them were not usable.
        reasons: of the first ones.
        done: whether the source is at its end.
        listing: of the source's files when the cache was begun; "" where that is not known.
    """

    made_of: dict[str, Any]
    latent_shape: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    read: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)
    done: bool = False
    listing: str = ""

    def skip(self, sample: Sample, reason: object) -> None:
        self.skipped += 1
        say(f"skipped {sample.name}: {reason}")
        if len(self.reasons) < _NAMED:
            self.reasons.append(f"{sample.name}: {reason}")


def fill_cache(
    folder: Path,
    data: DataSettings,
    size: tuple[int, int],
    source: str,
    encoders: Encoders,
    most_tokens: int | None = None,
) -> None:
    """Encode what the source has and the cache has not.

    Args:
        folder: of the cache.
        data: the source.
        size: width and height of pictures.
        source: names the checkpoint whose encoders these are.
        encoders: of that checkpoint.
        most_tokens: of a caption that its transformer takes; samples of longer ones are skipped.

    Raises:
        TrainingError: the cache is of something else, too many samples are unusable, or the disk is full.
    """
    progress = _begin(folder, made_of(data, size, source), data, encoders, size, most_tokens)
    samples = islice(find_samples(data), progress.read, data.count)
    while not progress.done:
        chunk = list(islice(samples, _PART))
        progress.done = len(chunk) < _PART
        progress.read += len(chunk)
        encoded = list(_encode(chunk, size, encoders, progress, most_tokens))
        _write(folder, progress, encoded)
        say(f"cache: {sum(progress.parts)} samples encoded, {progress.skipped} skipped")
    _check_share(folder, progress, data)


def made_of(data: DataSettings, size: tuple[int, int], source: str) -> dict[str, Any]:
    """What a cache depends on, as JSON types."""
    facts = asdict(data)
    return {
        "kind": data.kind,
        "path": str(data.path),
        "count": facts["count"],
        "empty_prompt": data.empty_prompt,
        "size": list(size),
        "checkpoint": source,
    }


def check_cache(folder: Path, data: DataSettings, size: tuple[int, int], source: str) -> bool:
    """Whether a cache is finished; where its source was changed since, that is said.

    Raises:
        TrainingError: it is of something else, or of too little.
    """
    progress = read_progress(folder)
    if progress is None:
        return False
    _compare(folder, progress, made_of(data, size, source))
    if progress.done:
        _check_share(folder, progress, data)
        if _is_changed(progress, data):
            say(
                f"'{data.path}' has changed since the cache '{folder}' was made of it; the cache is used as "
                "it is: remove it to encode the source anew"
            )
    return progress.done


def _compare(folder: Path, progress: _Progress, facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if (before := progress.made_of.get(name)) != value:
            raise TrainingError(
                f"The cache '{folder}' was made with {name} = {before!r}, not {value!r}: name another folder "
                "as data.cache, or remove it."
            )


def check_length(words: str, embedding: Embedding, most_tokens: int | None) -> None:
    """Raise SampleError where a caption has more tokens than the transformer takes."""
    if most_tokens is not None and (count := len(embedding["tokens"])) > most_tokens:
        raise SampleError(
            f"its caption, '{words[:_SHOWN]}...', has {count} tokens, more than the {most_tokens} that the "
            "transformer takes"
        )


def _begin(
    folder: Path,
    facts: dict[str, Any],
    data: DataSettings,
    encoders: Encoders,
    size: tuple[int, int],
    most_tokens: int | None,
) -> _Progress:
    progress = read_progress(folder)
    if progress is not None:
        _compare(folder, progress, facts)
        if not progress.done and _is_changed(progress, data):
            raise TrainingError(
                f"'{data.path}' has changed since the cache '{folder}' was begun, which cannot go on: remove "
                "the cache to encode the source anew."
            )
        return progress
    blank = torch.zeros(1, 3, size[1], size[0])
    shape = list(_encoded(encoders, blank)[0].shape)
    progress = _Progress(facts, latent_shape=shape, listing=listing(data))
    embedding = encoders.embed([facts["empty_prompt"]])[0]
    try:
        check_length(facts["empty_prompt"], embedding, most_tokens)
    except SampleError as error:
        raise TrainingError(f"data.empty_prompt: {error}.") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = {f"empty/{k}": v.cpu().contiguous() for k, v in embedding.items()}
        save_tensors(empty, folder / "empty.safetensors")
    except OSError as error:
        raise TrainingError(f"The cache '{folder}' cannot be written: {error}.") from error
    return progress


def read_progress(folder: Path) -> _Progress | None:
    """What a cache says of itself; None where there is none yet."""
    path = folder / "cache.json"
    if not path.is_file():
        return None
    try:
        return _Progress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"'{path}' is damaged ({error}): remove the folder to make it anew.") from error


def _encoded(encoders: Encoders, pictures: Tensor) -> Tensor:
    return encoders.encode(pictures).to("cpu", torch.bfloat16)


def _encode(
    chunk: Sequence[Sample],
    size: tuple[int, int],
    encoders: Encoders,
    progress: _Progress,
    most_tokens: int | None,
) -> Iterator[dict[str, Tensor]]:
    for sample in chunk:
        if not sample.caption:
            progress.skip(sample, "its caption is empty")
            continue
        encoded = {}
        try:
            pixels = sample.picture(*size) if sample.picture is not None else None
            embedding = encoders.embed([sample.caption])[0]
            check_length(sample.caption, embedding, most_tokens)
        except SampleError as error:
            progress.skip(sample, error)
            continue
        if pixels is not None:
            picture = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
            encoded["latents"] = _encoded(encoders, picture)[0]
        yield encoded | {name: tensor.cpu().bfloat16() for name, tensor in embedding.items()}


def _write(folder: Path, progress: _Progress, encoded: Sequence[Mapping[str, Tensor]]) -> None:
    tensors = {f"{row}/{k}": v.contiguous() for row, one in enumerate(encoded) for k, v in one.items()}
    path = folder / f"part-{len(progress.parts):05d}.safetensors"
    try:
        if tensors:
            save_tensors(tensors, path)
            progress.parts.append(len(encoded))
        partial = folder / "cache.partial"
        partial.write_text(json.dumps(asdict(progress), indent=1))
        partial.replace(folder / "cache.json")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise TrainingError(
            f"The cache '{folder}' cannot be written ({error}); what is in it is kept, and the same "
            "command goes on."
        ) from error


def _is_changed(progress: _Progress, data: DataSettings) -> bool:
    """Whether the source's files are others; a source that is gone counts as the same."""
    now = listing(data)
    return bool(now and progress.listing and now != progress.listing)


def _check_share(folder: Path, progress: _Progress, data: DataSettings) -> None:
    remedy = f"mend the source and remove the cache '{folder}' to encode it anew"
    if not sum(progress.parts):
        reasons = f", such as {progress.reasons[0]}" if progress.reasons else ""
        raise TrainingError(f"No sample of {progress.read} can be used{reasons}: {remedy}.")
    if progress.skipped > data.most_skipped * progress.read:
        raise TrainingError(
            f"{progress.skipped} of {progress.read} samples cannot be used, such as {progress.reasons[0]}; "
            f"data.most_skipped allows {data.most_skipped:.0%}: raise it, or {remedy}."
        )


class CachedData:
    """Samples of a finished cache; batches are drawn by seed and step, so any can be drawn again.

    Raises:
        TrainingError: it is not finished, or a file of it is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        progress = read_progress(folder)
        if progress is None or not progress.done:
            raise TrainingError(f"The cache '{folder}' is not finished.")
        self._files = [folder / f"part-{index:05d}.safetensors" for index in range(len(progress.parts))]
        self._places = [(part, row) for part, rows in enumerate(progress.parts) for row in range(rows)]
        self.latent_shape = tuple(progress.latent_shape)
        self.skipped = progress.skipped
        for path in self._files:
            with _opened(path):
                pass  # what is missing or cut off is told now, not at the step that draws it
        with readable(folder / "empty.safetensors"):
            empty = load_file(folder / "empty.safetensors")
        self.empty: Embedding = {name.removeprefix("empty/"): tensor for name, tensor in empty.items()}

    def __len__(self) -> int:
        return len(self._places)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[Embedding]]:
        """Random samples: latents fp32 [count, C, h, w], 0 where there are no pictures, and embeddings."""
        chosen = torch.randint(len(self), (count,), generator=generator).tolist()
        samples = [self._read(*self._places[index]) for index in chosen]
        blank = torch.zeros(self.latent_shape)
        latents = torch.stack([s.get("latents", blank).float() for s in samples])
        return latents, [{k: v for k, v in sample.items() if k != "latents"} for sample in samples]

    def _read(self, part: int, row: int) -> dict[str, Tensor]:
        with _opened(self._files[part]) as file:
            present = set(file.keys())
            names = [name for name in ("latents", "tokens", "pooled") if f"{row}/{name}" in present]
            return {name: file.get_tensor(f"{row}/{name}") for name in names}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what is raised by reading a file of a cache into a TrainingError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"'{path}' is missing or damaged ({error}): remove the folder '{path.parent}' to make it anew."
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with readable(path), safe_open(path, framework="pt") as file:
        yield file
