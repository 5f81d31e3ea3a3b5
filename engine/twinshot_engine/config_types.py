"""From a ``config.json`` to a dataclass, its values held against the annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

_WORDS = {int: "a whole number from 0", float: "a number", bool: "true or false", str: "a text"}
_Config = TypeVar("_Config")


def read_fields(kind: type[_Config], given: Mapping[str, Any]) -> _Config:
    """Make a dataclass, lists as tuples; raises ValueError for an unknown key or a value of another type."""
    known = get_type_hints(kind)
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"unknown keys {unknown}; known are {sorted(known)}")
    values = {key: _tuples(value) for key, value in given.items()}
    for key, value in values.items():
        if not _is(value, known[key]):
            raise ValueError(f"{key} {json.dumps(value)[:80]} is not {_words(known[key])}")
    return kind(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _is(value: object, kind: Any) -> bool:
    inner = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_is(value, each) for each in inner)
    if inner:
        return isinstance(value, tuple) and all(_is(each, inner[0]) for each in value)
    if isinstance(value, bool) or kind is bool:
        return kind is type(value)
    if kind is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, int | float if kind is float else kind)


def _words(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) is UnionType:
        return " or ".join(map(_words, inner))
    return f"a list, each {_words(inner[0])}" if inner else _WORDS.get(kind, "null")
