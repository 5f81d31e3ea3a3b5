"""The page's modules that need no browser, under Node.js' own test runner."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MODULES = Path(__file__).parent / "modules"
STATIC = Path(__file__).parent.parent.parent / "server" / "twinshot_server" / "static"


@pytest.fixture
def node() -> str:
    """Node.js 20.19 or newer, which knows modules by their syntax."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node.js")
    return program


@pytest.mark.parametrize("file", sorted(MODULES.glob("*.test.js")), ids=lambda file: file.stem)
def test_modules(file: Path, node: str) -> None:
    result = subprocess.run(
        [node, "--test", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "# pass 0" not in result.stdout


def test_every_module_is_imported_and_no_markup_is_made_of_text() -> None:
    sources = {path.name: path.read_text() for path in STATIC.glob("*.js")}
    sources["index.html"] = (STATIC / "index.html").read_text()
    for name in sources:
        if name.endswith(".js"):
            assert any(f'/{name}"' in text for other, text in sources.items() if other != name), name
    for name, text in sources.items():
        assert "innerHTML" not in text, name
        assert "style=" not in text, name
