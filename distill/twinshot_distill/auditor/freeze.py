"""Writing the auditor down: weights in eight bits, and a card that pins and measures them."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twinshot_distill.auditor.judge import CARD, STRICT, WEIGHTS, Auditor
from twinshot_distill.auditor.model import CellLabeller
from twinshot_distill.packing import pack
from twinshot_distill.verifier.augment import LEVELS
from twinshot_distill.verifier.measure import choose_threshold, rates
from twinshot_distill.verifier.model import parameters
from twinshot_distill.verifier.report import rate_tables
from twinshot_distill.world.vocabulary import OBJECTS

CALIBRATION_SEED = 50_021
TEST_SEED = 60_013
_THRESHOLDS = tuple(round(0.2 + 0.05 * step, 2) for step in range(14))
_INTRO = """# The auditor

A second opinion on whether a picture shows what was asked for, from a network that shares neither design nor
training pictures with [the verifier](../verifier/README.md): it labels every cell of a 16 x 16 grid, and what
is connected is an object. Trained on the generator's composer, so the pictures below, which the verifier's
composer drew on other backgrounds, are new to it in every respect but the drawings. Levels and hard negatives
are the verifier's.

{parameters:,} parameters, weights in eight bits, sha256 `{sha256}`, frozen {date}. Threshold {threshold}
(calibrated on a seed of its own); strict {strict}. To train one anew:
`python -m twinshot_distill.auditor.train --out FOLDER`.
"""


def freeze(model: CellLabeller, twins: dict[str, str], settings: dict[str, int], folder: Path) -> None:
    """Write the weights, and the card; the threshold is not calibrated yet. Raises as :func:`pack` does."""
    folder.mkdir(parents=True, exist_ok=True)
    floats = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    blob = pack(floats)
    (folder / WEIGHTS).write_bytes(blob)
    card = {
        "sha256": hashlib.sha256(blob).hexdigest(),
        "date": datetime.now(UTC).date().isoformat(),
        "threshold": STRICT,
        "strict": STRICT,
        "parameters": parameters(model),
        "twins": twins,
        "training": settings,
        "classes": [entry.name for entry in OBJECTS],
    }
    _write(folder, card)


def calibrate(folder: Path, count: int = 120) -> None:
    """Choose the threshold on one seed and measure it on another; the card and ``README.md`` tell both.

    Args:
        folder: of a frozen auditor.
        count: pictures a task.
    """
    auditor = Auditor.load(folder)
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    threshold = choose_threshold(rates(auditor, CALIBRATION_SEED, count, LEVELS, _THRESHOLDS))
    measured = rates(auditor, TEST_SEED, count, LEVELS, sorted({threshold, STRICT}))
    card |= {"threshold": threshold, "measured": {"seed": TEST_SEED, "rates": measured}}
    _write(folder, card)
    (folder / "README.md").write_text(_INTRO.format(**card) + rate_tables(measured))


def _write(folder: Path, card: dict[str, Any]) -> None:
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
