"""Our own OpenAPI document, turned against a real server: valid and invalid, alone and in sequences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from soak.servers import STUB, running

TINY = {"TWINSHOT_STUB_SIZES": "256x256,64x64", "TWINSHOT_STUB_MS": "1", "TWINSHOT_ADMIN_KEY": "fuzzers-key"}
# A schema cannot say which adapters are loaded or which sizes a model has.
LEFT_OUT = "positive_data_acceptance"


def test_nothing_that_the_document_allows_or_forbids_is_a_500(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "st"
    with running(tmp_path, *STUB, **TINY) as server:
        command = [program, "run", f"{server.url}/openapi.json", "--mode", "all", "--max-examples", "40"]
        command += ["--header", "Authorization: Bearer fuzzers-key", "--exclude-path", "/admin/drain"]
        command += ["--exclude-checks", LEFT_OUT, "--no-color"]
        result = subprocess.run(
            [*map(str, command)], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
        )
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
        assert "cases" in result.stdout
        assert server.post(size="64x64").status_code == 200
    assert "Traceback" not in server.log.read_text()
