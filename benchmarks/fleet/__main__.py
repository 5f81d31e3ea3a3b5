"""`python -m fleet`: every scenario, a table, and one JSON line. Exit code 1 if a promise was not kept."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from fleet.replicas import measure_replicas
from fleet.rolling import measure_rolling
from soak.report import Finding, as_rows, as_table

Scenario = Callable[[Path, argparse.Namespace], list[Finding]]

_ROOT = Path(__file__).parents[2]
_RESULT = _ROOT / "benchmarks" / "results" / "fleet-cpu.json"


def _replicas(folder: Path, options: argparse.Namespace) -> list[Finding]:
    return measure_replicas(folder, options.seconds or 120.0, options.users)


def _rolling(folder: Path, options: argparse.Namespace) -> list[Finding]:
    seconds = options.seconds or 120.0
    services = measure_rolling(folder, "tcp", seconds, options.users, stub=options.stub)
    return services + measure_rolling(folder, "http", seconds, options.users, stub=options.stub)


def _ray(folder: Path, options: argparse.Namespace) -> list[Finding]:
    from fleet.ray_load import measure_cluster

    return measure_cluster(folder, options.seconds or 600.0, options.users, stub=options.stub)


def _path(folder: Path, _options: argparse.Namespace) -> list[Finding]:
    from fleet.ray_load import measure_path

    return measure_path(folder, 400)


_SCENARIOS: dict[str, Scenario] = {"replicas": _replicas, "rolling": _rolling, "ray": _ray, "path": _path}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="+", choices=list(_SCENARIOS), help="ray and path need [ray]")
    parser.add_argument("--seconds", type=float, help="of load; else 120, and 600 for ray")
    parser.add_argument("--users", type=int, default=4, help="who ask for pictures, a second apart or so")
    parser.add_argument("--stub", action="store_true", help="rolling and ray: the stub, not the miniature")
    parser.add_argument("--write", action="store_true", help=f"keep the rows in {_RESULT.relative_to(_ROOT)}")
    options = parser.parse_args()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.scenarios:
            print(f"{name} …", file=sys.stderr, flush=True)
            findings += _SCENARIOS[name](Path(folder), options)
    rows = as_rows(findings, "fleet")
    print(as_table(findings))
    print(json.dumps(rows))
    if options.write:
        _keep(rows)
    return int(any(finding.kept is False for finding in findings))


def _keep(rows: list[dict[str, object]]) -> None:
    """Put the rows in the place of earlier ones of the same scenarios."""
    measured = {row["scenario"] for row in rows}
    earlier = json.loads(_RESULT.read_text()) if _RESULT.exists() else []
    kept = [row for row in earlier if row["scenario"] not in measured]
    _RESULT.write_text(json.dumps(kept + rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
