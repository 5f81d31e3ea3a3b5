"""An engine that draws greys, and prompts for it, for tests of evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from twinshot_distill.evaluation.official import Drawing
from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import GenerateRequest

DRAWING = Drawing(16, 8, steps=2, seed=7)


class SeedEngine:
    """Draws the seed as a grey, and refuses long prompts."""

    max_batch = 3
    info = SimpleNamespace(
        name="grey", checkpoint="org/grey", revision=None, precision="fp32", text_precision="fp32"
    )

    def __init__(self) -> None:
        self.asked: list[GenerateRequest] = []

    def validate(self, request: GenerateRequest) -> None:
        if len(request.prompt) > 40:
            raise InvalidRequestError("The prompt is too long.")

    def generate(self, requests: Sequence[GenerateRequest]) -> Any:
        self.asked += requests
        images = [np.full((r.height, r.width, 3), r.seed, np.uint8) for r in requests]
        return SimpleNamespace(images=np.stack(images))


def quiet(_what: str, _done: float) -> None:
    pass


def metadata(path: Path, prompts: Sequence[str]) -> Path:
    entries = [{"tag": "single_object", "include": [{"class": "cow"}], "prompt": p} for p in prompts]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "\n")
    return path
