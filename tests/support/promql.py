"""What a PromQL expression asks of the server: metrics, labels, and the values these are compared with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from twinshot_server.app import create_app
from twinshot_server.settings import DEFAULTS

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
SCRAPED = {"job", "namespace", "pod", "service", "instance"}
"""Labels that Prometheus adds."""

_SELECTOR = re.compile(r"\b(twinshot_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """Every metric of ours, with its matchers: label, and the values that it names."""
    for name, matchers in _SELECTOR.findall(expression):
        yield name, [(label, value.split("|")) for label, _, value in _MATCHER.findall(matchers)]


def groupings(expression: str) -> set[str]:
    """Every label that something is grouped by."""
    return {label.strip() for labels in _GROUPING.findall(expression) for label in labels.split(",")}


def series() -> dict[str, set[str]]:
    """The names that the server's metrics have in Prometheus, with their own labels."""
    registry = create_app(DEFAULTS).state.service.metrics.registry
    found = {}
    for collector in set(registry._names_to_collectors.values()):
        kind, name = getattr(collector, "_type", ""), getattr(collector, "_name", "")
        for suffix in SUFFIXES.get(kind, ()):
            found[f"{name}{suffix}"] = set(collector._labelnames) | ({"le"} if suffix == "_bucket" else set())
    return found
