"""Every public name has an example, and every example does what it says, on a real server."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

import twinshot

SOURCES = Path(twinshot.__file__).parent
NOT_OURS = {"Event": "_events.py"}
"""A union has no docstring of its own; the text below it in this file is its documentation."""


def documented() -> Iterator[tuple[str, str]]:
    """Every public name and every public method and property, with its docstring."""
    for name in twinshot.__all__:
        value = getattr(twinshot, name)
        if name in NOT_OURS:
            source = (SOURCES / NOT_OURS[name]).read_text()
            yield name, source.partition(f"\n{name} = ")[2].split('"""')[1]
            continue
        yield name, inspect.getdoc(value) or ""
        for member, own in vars(value).items():
            if not member.startswith("_") and is_documented_by_us(own):
                yield f"{name}.{member}", inspect.getdoc(own) or ""


def is_documented_by_us(member: object) -> bool:
    if isinstance(member, (classmethod, FunctionType, property)):
        return True
    return type(member).__name__ == "cached_property"


EXAMPLES = dict(documented())


def test_every_public_method_is_among_them() -> None:
    assert {"Client.generate", "AsyncClient.realtime", "Realtime.send", "Picture.image"} <= EXAMPLES.keys()
    assert {"Timings.parse", "Health.is_ready", "Event"} <= EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_does_what_it_says(
    name: str, server_url: str, guarded_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINSHOT_BASE_URL", server_url)
    names = {"guarded_url": guarded_url}
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, None, None)
    assert example.examples, f"{name} has no example"
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    runner.run(example, out=told.append)
    assert not told, "".join(told)
