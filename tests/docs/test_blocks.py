"""Every shell and Python block of the documents does what it says.

Shell blocks run in an empty folder, stopped by the first command that fails, with these stand-ins:

- `http://127.0.0.1:8000`, where `bench load` looks too, is a server that the tests started, on a port
  of its own;
- `twinshot serve` gets a free port and is stopped once it is ready;
- `make` only says what it would do, as most targets would run the tests again or take minutes;
- `curl` fails where the server refuses.

The Python blocks of a page run one after another in one process, as in a session. A block whose first line
says that it is not run, and why, is only checked for its syntax.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from documents import ADMIN_KEY, BLOCKS, PYTHON, ROOT, SHELL, SHOWN, Block

ADDRESS = "http://127.0.0.1:8000"
PRELUDE = f"""
set -euo pipefail
make() {{ command make --dry-run --directory '{ROOT}' "$@" > /dev/null; }}
curl() {{ command curl --fail-with-body --silent --show-error "$@"; }}
twinshot() {{
  if [ "${{1:-}}" != serve ]; then command twinshot "$@"; return; fi
  coproc server {{ exec twinshot "$@" --port 0 --drain-seconds 0; }}
  local process=$server_PID ready
  read -r ready <&"${{server[0]}}"
  echo "$ready"
  kill -TERM "$process"
  wait "$process"
}}
"""
RUN_PYTHON = """
import pathlib, sys
scope = {"__name__": "__main__"}
for path in sys.argv[1:]:
    exec(compile(pathlib.Path(path).read_text("utf-8"), path, "exec"), scope)
"""

SHELL_BLOCKS = [block for block in BLOCKS if block.language in SHELL]
PYTHON_PAGES = sorted({block.page for block in BLOCKS if block.language in PYTHON})


def finish(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run to the end; whatever it says is shown if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_shell_block(
    block: Block, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    code = block.code.replace(".venv/bin/", "")
    if block.reason:
        finish(["bash", "-n", "-c", code], tmp_path, environment)
        return
    environment = environment | {"TWINSHOT_ADMIN_KEY": ADMIN_KEY}
    if ADDRESS in code or "bench load" in code:
        server = request.getfixturevalue("server")
        code = code.replace(ADDRESS, server)
        environment["TWINSHOT_BENCH_LOAD_URL"] = server
    finish(["bash", "-c", PRELUDE + code], tmp_path, environment)


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_python_blocks(page: Path, server: str, environment: dict[str, str], tmp_path: Path) -> None:
    files = []
    for block in BLOCKS:
        if block.page != page or block.language not in PYTHON:
            continue
        compile(block.code, str(block), "exec")
        if not block.reason:
            files.append(f"{page.name}:{block.line}")
            # Empty lines before it make line numbers in tracebacks those of the page.
            code = "\n" * (block.line - 1) + block.code.replace(ADDRESS, server)
            (tmp_path / files[-1]).write_text(code, "utf-8")
    command = [sys.executable, "-W", "error", "-c", RUN_PYTHON, *files]
    finish(command, tmp_path, environment | {"TWINSHOT_BASE_URL": server})


def test_no_block_is_passed_over() -> None:
    assert {block.language for block in BLOCKS} <= SHELL | PYTHON | SHOWN
    assert len(SHELL_BLOCKS) >= 5
    assert len(PYTHON_PAGES) >= 2
    for block in BLOCKS:
        block.reason  # noqa: B018 - raises where it is none


def run_shell(code: str, folder: Path, environment: dict[str, str]) -> int:
    return subprocess.run(
        ["bash", "-c", PRELUDE + code], cwd=folder, env=environment, capture_output=True, check=False
    ).returncode


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("true\nls", True),
        ("false\ntrue", False),
        ("nonsense --here", False),
        ("false | true", False),
        ("make help", True),
        ("make no-such-target", False),
        ("twinshot --version", True),
        ("twinshot generate --no-such-option", False),
        ("twinshot serve --no-such-option", False),
        ("curl http://127.0.0.1:1/", False),
    ],
)
def test_a_block_fails_with_any_of_its_commands(
    code: str, passes: bool, environment: dict[str, str], tmp_path: Path
) -> None:
    assert (run_shell(code, tmp_path, environment) == 0) is passes


def test_refusals_of_the_server_fail_a_block(
    server: str, environment: dict[str, str], tmp_path: Path
) -> None:
    assert run_shell(f"curl {server}/health", tmp_path, environment) == 0
    assert run_shell(f"curl {server}/nowhere", tmp_path, environment) != 0
