"""Writing the verifier down: weights in eight bits and a card that pins them."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twinshot_distill.packing import pack
from twinshot_distill.verifier.model import COLOR_NAMES, INPUT_SIDE, STRIDE, Detector, parameters
from twinshot_distill.world.sprites import ATLAS
from twinshot_distill.world.vocabulary import OBJECTS

FOLDER = Path(__file__).parent
WEIGHTS = "verifier.safetensors"
CARD = "verifier.json"
_PROVISIONAL_THRESHOLD = 0.15


def freeze(model: Detector, twins: dict[str, str], settings: dict[str, Any], folder: Path) -> None:
    """Write the weights and `verifier.json`; the threshold is not calibrated yet. Raises as `pack` does."""
    folder.mkdir(parents=True, exist_ok=True)
    blob = pack({k: v for k, v in model.state_dict().items() if v.is_floating_point()})
    (folder / WEIGHTS).write_bytes(blob)
    write_card(folder, {
        "weights": WEIGHTS,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "atlas_sha256": hashlib.sha256(ATLAS.read_bytes()).hexdigest(),
        "date": datetime.now(UTC).date().isoformat(),
        "threshold": _PROVISIONAL_THRESHOLD,
        "architecture": _architecture(model),
        "twins": twins,
        "training": settings,
    })  # fmt: skip


def _architecture(model: Detector) -> dict[str, Any]:
    return {
        "kind": "centre-point detector, stride 8, dilated residual body",
        "input": INPUT_SIDE,
        "stride": STRIDE,
        "width": model.heat.in_channels,
        "parameters": parameters(model),
        "colors": list(COLOR_NAMES),
        "classes": [entry.name for entry in OBJECTS],
    }


def read_card(folder: Path) -> dict[str, Any]:
    """The contents of a folder's `verifier.json`."""
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write a folder's `verifier.json`."""
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
