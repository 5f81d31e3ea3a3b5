"""`python -m soak`: every scenario, a table, and one JSON line. Exit code 1 if a promise was not kept."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from soak.fairness import measure_fairness
from soak.faults import measure_faults
from soak.leaving import measure_leaving
from soak.overload import measure_miniature, measure_overload
from soak.report import Finding, as_rows, as_table
from soak.speed import measure_encoding, measure_overhead

Scenario = Callable[[Path], list[Finding]]

_ROOT = Path(__file__).parents[2]
_RESULT = _ROOT / "benchmarks" / "results" / "soak-cpu.json"
_FULL: dict[str, Scenario] = {
    "encoding": lambda _folder: measure_encoding(40),
    "overhead": lambda folder: measure_overhead(folder, 400),
    "overload": lambda folder: measure_overload(folder, 60.0),
    "miniature": lambda folder: measure_miniature(folder, 20.0),
    "leaving": lambda folder: measure_leaving(folder, 1000),
    "fairness": lambda folder: measure_fairness(folder, 30.0),
    "faults": lambda folder: measure_faults(folder, 8.0),
}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", help=f"some of {', '.join(_FULL)}; all if none is named")
    parser.add_argument("--write", action="store_true", help=f"keep the rows in {_RESULT.relative_to(_ROOT)}")
    options = parser.parse_args()
    names = options.scenarios or list(_FULL)
    if unknown := set(names) - set(_FULL):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(_FULL)}")
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            findings += _FULL[name](Path(folder))
    print(as_table(findings))
    rows = as_rows(findings)
    print(json.dumps(rows))
    if options.write:
        _RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(finding.kept is False for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
