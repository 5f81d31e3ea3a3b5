"""How blocks are found in a page, and that what documents quote of the code and point to is there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import MARK, PAGES, ROOT, blocks_in

from twinshot_server.app import create_app
from twinshot_server.settings import DEFAULTS


def test_blocks_are_found_with_their_lines() -> None:
    text = "# a\n```sh\necho 1\n```\n- item:\n  ```python title\n  if x:\n      y\n  ```\n```\nplain\n```\n"
    found = [(block.line, block.language, block.code) for block in blocks_in(text, ROOT / "README.md")]
    assert found == [(3, "sh", "echo 1\n"), (7, "python", "if x:\n    y\n"), (11, "", "plain\n")]


def test_a_block_that_is_not_run_says_why() -> None:
    def reason(line: str) -> str | None:
        return blocks_in(f"```sh\n{line}\nls\n```", ROOT / "README.md")[0].reason

    assert reason("ls") is None
    assert reason(f"{MARK}it needs a GPU") == "it needs a GPU"
    with pytest.raises(ValueError, match=r"README.md:2 is not run because 'I am tired'; accepted: it needs"):
        reason(f"{MARK}I am tired")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)", text)
    for target, anchor in targets:
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor and path.suffix == ".md":
            assert anchor.removeprefix("#") in anchors(path), f"{page.name} links to {target}{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    """The script behind `make docs`."""
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs/refresh.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_openapi_document_is_current(refresh: ModuleType) -> None:
    checked_in = (ROOT / "docs/openapi.json").read_text("utf-8")
    assert checked_in == refresh.openapi(), "run make docs"
    assert json.loads(checked_in) == create_app(DEFAULTS).openapi()


def test_the_latency_table_is_current(refresh: ModuleType) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert refresh.with_table(text, refresh.latency_table(refresh.read_rows())) == text, "run make docs"


def row(part: str, median: float, **more: Any) -> dict[str, Any]:
    """A result row; the fields that a test does not name are those of one measurement."""
    fields = {"benchmark": "latency", "system": "twinshot", "gpu": "GPU A", "checkpoint": "random:z-image"}
    fields |= {"precision": "fp8", "width": 1024, "height": 1024, "steps": 1, "batch": 1}
    fields |= {"versions": "torch 2.11", "commit": "abc", "date": "2026-01-01", "samples": 30}
    return fields | {"part": part, "median_ms": median, "p95_ms": median + 1} | more


def whole(**more: Any) -> list[dict[str, Any]]:
    return [row(part, ms, **more) for part, ms in (("text", 2), ("denoise", 50.25), ("decode", 123.6))]


def test_a_line_of_the_table_is_what_was_measured_as_a_whole(refresh: ModuleType) -> None:
    rows = [
        *whole(),
        row("request", 180),
        row("total", 170),
        *whole(system="diffusers-compiled", precision="bf16"),
        row("text", 9, gpu="GPU B"),  # and nothing else
        *whole(width=256, height=256, gpu="none (CPU, 2 cores)", checkpoint="mini", steps=2, tokens=64),
    ]
    _, _, *lines = refresh.latency_table(rows).splitlines()
    times = "2.0 ms | 50.2 ms | 124 ms"
    large = "z-image, random weights | 1024x1024, 1 step | GPU A"
    assert lines[:3] == [
        f"| {large} | twinshot, fp8 | {times} | **180 ms** | 181 ms |",
        f"| {large} | diffusers, compiled, bf16 | {times} |  |  |",
        f"| mini | 256x256, 2 steps | no GPU (CPU, 2 cores) | twinshot, fp8 | {times} |  |  |",
    ]
    notes = [line for line in lines[3:] if line]
    assert notes[0] == "*GPU A: 30 requests over HTTP, torch 2.11, commit abc, 2026-01-01.*"
    assert notes[1].startswith("*no GPU (CPU, 2 cores): 30 requests in one process, prompts of 64 tokens, ")
    assert len(notes) == 2


def test_the_table_says_where_no_gpu_was_measured(refresh: ModuleType) -> None:
    sentence = "No GPU has been measured yet."
    assert sentence in refresh.latency_table(whole(gpu="none (CPU, 2 cores)"))
    assert sentence not in refresh.latency_table([*whole(gpu="none (CPU, 2 cores)"), *whole()])


def test_a_later_measurement_replaces_an_earlier_one(refresh: ModuleType, tmp_path: Path) -> None:
    old, new = whole(date="2026-01-01"), whole(date="2026-02-01", commit="def")
    new[0]["median_ms"] = 1
    (tmp_path / "a.json").write_text(json.dumps(new))
    (tmp_path / "b.json").write_text(json.dumps([*old, {"benchmark": "kernels", "date": "2026-03-01"}]))
    table = refresh.latency_table(refresh.read_rows(tmp_path))
    assert "| 1.0 ms |" in table
    assert "commit abc" not in table


def test_a_document_without_markers_is_refused(refresh: ModuleType) -> None:
    with pytest.raises(ValueError, match="lacks the markers"):
        refresh.with_table("# README\n", "table")
