"""Every block of Python in the client's documents does its work, on a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from canned import STUB_ENVIRONMENT

from soak.servers import STUB, running
from twinshot import _errors

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("docs/SDK.md", "clients/python/README.md")


def blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = STUB_ENVIRONMENT | {"TWINSHOT_STUB_SIZES": "256x256"}
    with running(tmp_path_factory.mktemp("server"), *STUB, **options) as server:
        yield server.url


@pytest.mark.parametrize(
    ("document", "index"),
    [(document, index) for document in DOCUMENTS for index in range(len(blocks(document)))],
)
def test_the_block_runs(document: str, index: int, url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", blocks(document)[index]]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"TWINSHOT_BASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    lines = [
        line for line in (_errors.__doc__ or "").splitlines() if line.startswith(("├", "│", "└", "    "))
    ]
    document = (ROOT / "docs/SDK.md").read_text(encoding="utf-8")
    assert len(lines) == 11
    assert [line for line in lines if line not in document] == []
