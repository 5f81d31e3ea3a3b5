"""From the key's stroke to the picture: the page in a browser, with somebody typing.

Chromium without a window opens the page of a server process on the same machine and types prompts at a
steady pace. For each keystroke it is measured how long it takes until a picture of that prompt, or of a newer
one, is on the canvas and the browser has begun the next frame; and how many pictures of older prompts were
shown meanwhile. Browser, server and this program share the machine's cores.

Prints a table and, last, one JSON line; `--write` keeps the rows in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from playwright.sync_api import Page, sync_playwright

from latency import ROOT, Row, describe, server
from twinshot_engine.benchmark.rows import quantiles

PROMPTS = (
    "two green apples on a pink background",
    "a blue teapot and a yellow cup",
    "a black cat right of a pumpkin at night",
    "a rocket above a house in space",
    "three penguins in the snow",
)
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WATCH = """
window.typed = [];
window.shown = [];
document.addEventListener("input", (event) => {
  const { id, value } = event.target;
  if (id === "prompt") typed.push({ at: event.timeStamp, heard: performance.now(), prompt: value });
}, { capture: true });
document.addEventListener("twinshot:picture", ({ detail: { prompt } }) => {
  const picture = { prompt, painted: performance.now() };
  requestAnimationFrame(() => shown.push({ ...picture, at: performance.now() }));
});
"""


@dataclass(frozen=True, slots=True)
class Wait:
    """From one keystroke to its picture."""

    milliseconds: float
    stale: int
    """Pictures of older prompts that were shown meanwhile."""


def main() -> None:
    """Measure, print, and keep the rows if asked to."""
    options = parse_options()
    load = os.getloadavg()[0]  # what else the machine is doing
    with server(options) as url:
        model = httpx2.get(f"{url}/v1/models").raise_for_status().json()["data"][0]
        with opened(url) as page:
            type_all(page, PROMPTS[:1], options.rate)
            page.evaluate("typed.length = shown.length = 0")
            type_all(page, PROMPTS, options.rate)
            waits = match(page.evaluate("typed"), page.evaluate("shown"))
    facts = describe(model) | {"load_before": round(load, 2)}
    rows = [facts | row for row in summarise(waits, options.rate)]
    print_table(rows)
    if options.write:
        name = f"playground-{model['id']}-{model['device']}.json"
        (ROOT / "benchmarks" / "results" / name).write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps({name: rows[0][name] for name in ("median_ms", "p95_ms", "stale")}))


def parse_options() -> argparse.Namespace:
    """Options of the measurement; what else is given goes to `twinshot serve`, such as --checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=8, help="keys a second (default 8)")
    parser.add_argument("--write", action="store_true", help="keep the rows in benchmarks/results/")
    options, rest = parser.parse_known_args()
    options.serve = rest
    return options


@contextmanager
def opened(url: str) -> Iterator[Page]:
    """The page in a browser, with its first picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.add_init_script(WATCH)
        page.goto(url)
        page.wait_for_selector(".tile:not(.empty)", timeout=60_000)
        yield page
        browser.close()


def type_all(page: Page, prompts: Sequence[str], rate: float) -> None:
    """Type prompts one over the other, a key every 1 / `rate` seconds, and wait for the last picture."""
    for prompt in prompts:
        page.focus("#prompt")
        page.keyboard.press("Control+A")
        start = time.perf_counter()
        for number, key in enumerate(prompt):
            time.sleep(max(0.0, start + number / rate - time.perf_counter()))
            page.keyboard.type(key)
        deadline = time.monotonic() + 30
        while page.evaluate("shown.at(-1)?.prompt") != prompt:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no picture of {prompt!r} came")
            time.sleep(0.05)


def match(typed: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]) -> list[Wait]:
    """Each keystroke with the first picture of its prompt or of a later one."""
    order = {entry["prompt"]: number for number, entry in enumerate(typed)}
    waits = []
    for number, entry in enumerate(typed):
        after = [picture for picture in shown if picture["painted"] > entry["heard"]]
        ages = [order.get(picture["prompt"], -1) for picture in after]
        first = next(place for place, age in enumerate(ages) if age >= number)
        waits.append(Wait(after[first]["at"] - entry["at"], first))
    return waits


def summarise(waits: Sequence[Wait], rate: float) -> list[Row]:
    """One row: how long keystrokes waited, and the most older pictures that one of them saw."""
    return [
        {
            "benchmark": "playground",
            "part": "key to picture",
            "keys_per_second": rate,
            **quantiles([wait.milliseconds for wait in waits]),
            "stale": max(wait.stale for wait in waits),
        }
    ]


def print_table(rows: Sequence[Row]) -> None:
    """The rows for people."""
    for row in rows:
        print(f"{row['checkpoint']} in Chromium, {row['keys_per_second']:g} keys a second, gpu: {row['gpu']}")
        print(f"{row['versions']}, commit {row['commit']}, load before: {row['load_before']}")
        print(f"\n{'part':<16}{'p50 ms':>10}{'p95 ms':>10}{'keys':>8}{'most older pictures':>22}")
        figures = f"{row['median_ms']:>10.1f}{row['p95_ms']:>10.1f}{row['samples']:>8}{row['stale']:>22}"
        print(f"{row['part']:<16}{figures}\n")


if __name__ == "__main__":
    main()
