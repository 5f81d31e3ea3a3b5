"""Rewrites what the documents hold of code and measurements: `make docs`. Tests fail where it was forgotten.

- README.md: the latency table, from benchmarks/results/*.json, between its two markers;
- docs/openapi.json: what a server answers at /openapi.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twinshot_server.app import create_app
from twinshot_server.settings import DEFAULTS
from twinshot_server.stub_engine import StubEngine, StubSettings

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- latency: written by make docs -->\n", "<!-- /latency -->"
SYSTEMS = {"diffusers": "diffusers", "diffusers-compiled": "diffusers, compiled"}
PARTS = ("text", "denoise", "decode", "request")
HEAD = ("model", "picture", "machine", "system", *PARTS[:3], "request, p50", "p95")

_NO_GPU = "none "

Row = Mapping[str, Any]
Group = dict[str, Row]


def main() -> None:
    """Rewrite both."""
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8"), latency_table(read_rows())), "utf-8")
    (ROOT / "docs/openapi.json").write_text(openapi(), "utf-8")


def openapi() -> str:
    """The OpenAPI document as it is checked in: a value a line, unindented, as that is a third less."""
    document = create_app(DEFAULTS, StubEngine(StubSettings.model_construct())).openapi()
    return json.dumps(document, indent=0, separators=(",", ":"), ensure_ascii=False) + "\n"


def read_rows(folder: Path = ROOT / "benchmarks/results") -> list[Row]:
    """The speed rows of every result file, the oldest first."""
    rows = [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text("utf-8"))]
    return sorted((row for row in rows if row["benchmark"] == "latency"), key=lambda row: row["date"])


def with_table(text: str, table: str) -> str:
    """A document with another table between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document lacks the markers {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}{table}{END}{after}"


def latency_table(rows: Iterable[Row]) -> str:
    """A line for each thing that was measured as a whole, large pictures first; below it how and when."""
    groups: dict[tuple[Any, ...], Group] = {}
    for row in rows:
        groups.setdefault(_subject(row), {})[row["part"]] = row  # later rows replace earlier ones
    whole = [group for group in groups.values() if group.keys() >= set(PARTS[:3])]
    whole.sort(key=lambda group: (-_pixels(group), group["text"]["gpu"], _best(group)))
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(_cells(group)) + " |" for group in whole]
    notes = list(dict.fromkeys(_note(group["text"]) for group in whole))
    if all(group["text"]["gpu"].startswith(_NO_GPU) for group in whole):
        notes.append("No GPU has been measured yet.")
    return "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


def _subject(row: Row) -> tuple[Any, ...]:
    names = ("checkpoint", "family", "width", "height", "steps", "batch", "gpu", "system", "precision")
    return tuple(row.get(name) for name in names)


def _pixels(group: Group) -> int:
    return int(group["text"]["width"] * group["text"]["height"])


def _best(group: Group) -> float:
    return float(sum(group[part]["median_ms"] for part in PARTS[:3]))


def _cells(group: Group) -> list[str]:
    row, request = group["text"], group.get("request")
    model = row.get("checkpoint") or row["family"]
    picture = f"{row['width']}x{row['height']}, {row['steps']} step{'s' * (row['steps'] > 1)}"
    system = f"{SYSTEMS.get(row['system'], row['system'])}, {row['precision']}"
    parts = [_milliseconds(group[part]["median_ms"]) for part in PARTS[:3]]
    whole = (
        [f"**{_milliseconds(request['median_ms'])}**", _milliseconds(request["p95_ms"])]
        if request
        else ["", ""]
    )
    return [_model_in_words(model), picture, _machine(row), system, *parts, *whole]


def _model_in_words(model: str) -> str:
    return f"{model.removeprefix('random:')}, random weights" if model.startswith("random:") else model


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _machine(row: Row) -> str:
    gpu = str(row["gpu"])
    return f"no GPU {gpu.removeprefix(_NO_GPU)}" if gpu.startswith(_NO_GPU) else gpu


def _note(row: Row) -> str:
    """How it was measured; only rows of one process know how long the prompts were."""
    way = f"in one process, prompts of {row['tokens']} tokens" if "tokens" in row else "over HTTP"
    facts = (f"{row['samples']} requests {way}", row["versions"], f"commit {row['commit']}", row["date"])
    return f"*{_machine(row)}: {', '.join(facts)}.*"


if __name__ == "__main__":
    main()
