"""The page of a run: its curves and newest samples, as one HTML file that renews itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from twinshot_distill.charts import line_chart

_MOST_POINTS = 400
_SAMPLES = 6
STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;"
    "max-width:1180px;padding:0 1rem}h1{font-size:1.3rem}figure{margin:0}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}"
    "img,svg{max-width:100%;height:auto}progress{width:100%}table{border-collapse:collapse}"
    "td,th{padding:.15rem .7rem;text-align:right}td:first-child,th:first-child{text-align:left}"
)
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "losses": ("loss", "base", "adv", "rectify", "pixels", "latents"),
    "gradient norm": ("gradient",),
    "learning rate": ("learning rate",),
    "rows a second": ("rows/s",),
}


def write_page(
    folder: Path,
    name: str,
    history: Sequence[Mapping[str, Any]],
    progress: float,
    told: str,
    prompts: Sequence[str],
    *,
    ended: bool,
) -> None:
    """Write `progress.html` for the reports so far; samples are the WebP files in `folder/samples`."""
    refresh = "" if ended else '<meta http-equiv="refresh" content="15">'
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{refresh}'
        f"<title>{escape(name)}</title><style>{STYLE}</style><h1>{escape(name)}</h1>"
        f'<progress value="{progress:.4f}"></progress><p>{escape(told)}</p>'
        f'<div class="charts">{"".join(_charts(history))}</div>'
        f"{''.join(_samples(folder, name, prompts))}</html>\n"
    )
    partial = folder / "progress.partial"
    partial.write_text(page)
    partial.replace(folder / "progress.html")


def _charts(history: Sequence[Mapping[str, Any]]) -> list[str]:
    stride = -(-len(history) // _MOST_POINTS)
    kept = history[::stride]
    charts = []
    for title, names in _GROUPS.items():
        series = {n: [(float(h["step"]), float(h[n])) for h in kept if h.get(n) is not None] for n in names}
        drawn = line_chart(title, {n: points for n, points in series.items() if points}, x_label="step")
        charts.append(f"<figure>{drawn}</figure>" if drawn else "")
    return charts


def _samples(folder: Path, name: str, prompts: Sequence[str]) -> list[str]:
    newest = sorted((folder / "samples").glob(f"{name}-*.webp"), reverse=True)[:_SAMPLES]
    heading = f"<p>Samples, row by row: {escape('; '.join(prompts))}</p>"
    return [heading] * bool(newest and prompts) + [
        f"<h2>step {int(path.stem.rsplit('-', 1)[1])}</h2>"
        f'<img src="samples/{escape(path.name)}" alt="samples">'
        for path in newest
    ]
