"""The board: Prometheus reads its queries, the server has what they ask for, and they show what was drawn."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import BOARD, ROOT, program
from promql import SCRAPED, groupings, selectors, series

PANELS: list[dict[str, Any]] = [
    panel for panel in json.loads(BOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"
]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
ASKED_FOR = {
    *(
        "requests_total",
        "request_duration_seconds_bucket",
        "stage_duration_seconds_bucket",
        "requests_waiting",
    ),
    *(
        "predicted_wait_seconds",
        "batch_size_sum",
        "dropped_images_total",
        "gpu_memory_bytes",
        "engines_available",
    ),
    *("text_cache_lookups_total", "images_total", "event_loop_lag_seconds_bucket", "build_info"),
}
"""What an operator must be able to see."""

NEVER = ('outcome="rejected"', 'outcome="cancelled"', "dropped_images_total", "engine_restarts_total")
"""What did not happen has no series yet."""


def filled_in(expression: str) -> str:
    """A query as Grafana sends it, with all namespaces and replicas chosen."""
    return re.sub(r"\$(namespace|instance)\b", ".*", expression).replace("$__rate_interval", "10s")


def test_everything_that_matters_is_shown() -> None:
    shown = {name.removeprefix("twinshot_") for _, expression in QUERIES for name, _ in selectors(expression)}
    assert shown >= ASKED_FOR


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_query_asks_for_what_the_server_has(title: str, expression: str) -> None:
    known, asked = series(), list(selectors(expression))
    assert asked
    for name, matchers in asked:
        labels = {label for label, _ in matchers}
        assert labels <= known[name] | SCRAPED
        assert {"job", "namespace", "instance"} <= labels, f"{title} is not narrowed by the board's variables"
    assert groupings(expression) <= SCRAPED | set().union(*(known[name] for name, _ in asked))


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": filled_in(text)} for n, (_, text) in enumerate(QUERIES)]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}), "utf-8"
    )
    command = [program("promtool"), "check", "rules", "--lint=none", str(tmp_path / "rules.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    board = json.loads(BOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in board}) == len(board)
    assert len({panel["title"] for panel in board}) == len(board)
    taken: set[tuple[int, int]] = set()
    for panel in board:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


@pytest.fixture(scope="module")
def prometheus(pod: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prometheus as compose starts it, but scraping that one server, every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["twinshot:8000"]}]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [pod.removeprefix("http://")]}]
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = [str(ROOT / "deploy/prometheus" / name) for name in config["rule_files"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
    ]
    with subprocess.Popen(
        [*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def ask(prometheus: str, path: str) -> Any:
    with urllib.request.urlopen(f"{prometheus}/api/v1/{path}", timeout=10) as answer:
        return json.load(answer)["data"]


def has_data(prometheus: str, expression: str) -> bool:
    query = urllib.parse.urlencode({"query": filled_in(expression)})
    results = ask(prometheus, f"query?{query}")["result"]
    return any(result["value"][1] != "NaN" for result in results)


def draw(pod: str, key: str, prompt: str) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    body = json.dumps({"prompt": prompt}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(f"{pod}/generate", body, headers), timeout=60
    ) as answer:
        assert answer.status == 200


def test_every_panel_shows_something_once_pictures_are_drawn(prometheus: str, pod: str, key: str) -> None:
    expected = {text for _, text in QUERIES if not re.search("|".join(NEVER), text) or "vector(0)" in text}
    empty, limit = expected, time.monotonic() + 60
    while empty:
        assert time.monotonic() < limit, f"no data for {empty}"
        draw(pod, key, "a red car")
        time.sleep(0.5)
        with contextlib.suppress(OSError):  # while Prometheus starts
            empty = {text for text in expected if not has_data(prometheus, text)}
    rules = ask(prometheus, "rules")["groups"][0]["rules"]
    # One may be pending: a busy machine looks overloaded for a moment.
    assert {rule["state"] for rule in rules} <= {"inactive", "pending"}
