"""Pictures for GenEval's and DPG-Bench's own scorers, in the folders that those read.

The prompts are not part of this repository: the user gives the benchmark's own file. Pictures that exist are
not drawn again, so an interrupted run goes on; pictures of other settings are never mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinshot_distill.errors import TrainingError
from twinshot_distill.evaluation.drawing import Report, check_prompts, draw_all
from twinshot_distill.evaluation.keeping import claim, identity, save_whole, writing
from twinshot_distill.texts import read_text
from twinshot_engine.engine import Engine
from twinshot_engine.types import GenerateRequest

_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Drawing:
    """How benchmark pictures are drawn: size in pixels, passes, and the first of each prompt's four seeds."""

    width: int
    height: int
    steps: int = 1
    seed: int = 42

    def requests(self, prompt: str) -> list[GenerateRequest]:
        """The four pictures of a prompt; seeds count up from the first, the same for every prompt."""
        return [
            GenerateRequest(prompt, self.seed + k, self.width, self.height, self.steps)
            for k in range(_IMAGES)
        ]


def write_geneval(engine: Engine, metadata: Path, out: Path, drawing: Drawing, report: Report) -> int:
    """Draw GenEval's prompts: `00000/metadata.jsonl` and `00000/samples/0000.png` to `0003.png`.

    Returns how many prompts were drawn now.

    Raises:
        TrainingError: the metadata cannot be read, a prompt cannot be drawn, the folder cannot be written or
            holds pictures of other settings.
    """
    entries = list(_json_lines(metadata, ("tag", "include", "prompt")))
    check_prompts(engine, [drawing.requests(entry["prompt"])[0] for entry in entries])
    folders = [out / f"{index:05d}" for index in range(len(entries))]
    with writing("The pictures", out):
        _claim(out, engine, drawing, entries, begun=any(out.glob("*/samples/*.png")))
        missing = [k for k, folder in enumerate(folders) if not _complete(folder)]
        for index in missing:
            (folders[index] / "samples").mkdir(parents=True, exist_ok=True)
            (folders[index] / "metadata.jsonl").write_text(json.dumps(entries[index]) + "\n")
        requests = [request for k in missing for request in drawing.requests(entries[k]["prompt"])]
        pictures = draw_all(engine, requests, "GenEval", report)
        for index in missing:
            for number, picture in enumerate(islice(pictures, _IMAGES)):
                save_whole(Image.fromarray(picture), folders[index] / "samples" / f"{number:04d}.png")
    return len(missing)


def _claim(out: Path, engine: Engine, drawing: Drawing, prompts: Any, *, begun: bool) -> None:
    """See that a folder holds no pictures of other settings or prompts."""
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
    claim(out, {**identity(engine.info), **asdict(drawing), "prompts": digest}, begun=begun)


def _complete(folder: Path) -> bool:
    return all((folder / "samples" / f"{number:04d}.png").is_file() for number in range(_IMAGES))


def write_dpg(engine: Engine, prompts: Path, out: Path, drawing: Drawing, report: Report) -> int:
    """Draw DPG-Bench's prompts: `<name>.png`, a sheet of 2 x 2 pictures.

    Args:
        engine: that draws.
        prompts: the folder of `<name>.txt`, or JSON lines of id and prompt.
        out: for the sheets.
        drawing: size and passes.
        report: receives progress.

    Returns how many prompts were drawn now.

    Raises:
        TrainingError: the prompts cannot be read, one cannot be drawn, the folder cannot be written or holds
            sheets of other settings.
    """
    named = dict(_named_prompts(prompts))
    check_prompts(engine, [drawing.requests(prompt)[0] for prompt in named.values()])
    with writing("The sheets", out):
        _claim(out, engine, drawing, named, begun=any(out.glob("*.png")))
        missing = [name for name in named if not (out / f"{name}.png").is_file()]
        requests = [request for name in missing for request in drawing.requests(named[name])]
        pictures = draw_all(engine, requests, "DPG-Bench", report)
        for name in missing:
            save_whole(Image.fromarray(_grid(list(islice(pictures, _IMAGES)))), out / f"{name}.png")
    return len(missing)


def _grid(group: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Four pictures as two rows of two."""
    return np.vstack([np.hstack(group[:2]), np.hstack(group[2:])])


def _named_prompts(prompts: Path) -> Iterator[tuple[str, str]]:
    if prompts.is_dir():
        found = sorted(prompts.glob("*.txt"))
        if not found:
            raise TrainingError(f"'{prompts}' holds no prompts (*.txt).")
        yield from ((path.stem, read_text(path).strip()) for path in found)
        return
    for entry in _json_lines(prompts, ("id", "prompt")):
        name = str(entry["id"])
        if Path(name).name != name:
            raise TrainingError(f"'{prompts}' has the id {name!r}, which is no file name.")
        yield name, str(entry["prompt"])


def _json_lines(path: Path, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            missing = [key for key in keys if key not in entry]
        except (ValueError, TypeError) as error:
            raise TrainingError(f"'{path}', line {number}, is not JSON: {error}.") from error
        if missing:
            raise TrainingError(f"'{path}', line {number}, has no {missing[0]!r}.")
        yield entry
