"""Hold the values of a ``config.json`` against the types that a config's class declares."""

from __future__ import annotations

import json
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

_WORDS: dict[Any, str] = {
    int: "a whole number from 0",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
}


def check_types(config: object) -> None:
    """Compare the fields of a dataclass with their annotations; a list must have become a tuple.

    Raises:
        ValueError: a value is of another type; the message names field, value and what is accepted.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is(value, kind):
            raise ValueError(f"{name} {json.dumps(value)[:80]} is not {_words(kind)}")


def _is(value: object, kind: Any) -> bool:
    if get_origin(kind) is UnionType:
        return any(_is(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(each, get_args(kind)[0]) for each in value)
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(map(_words, get_args(kind)))
    return f"a list, each {_words(get_args(kind)[0])}" if get_origin(kind) is tuple else _WORDS[kind]
