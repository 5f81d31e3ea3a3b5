"""Transformers stored alone, under other names than diffusers': what a family says of them.

Files of this kind come from ComfyUI and from converters to GGUF. A family translates their names once, to
those of its diffusers folder; everything after is the same for all checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from twinshot_engine.tensor_files import Header

Headers = Mapping[str, Header]
"""Headers by the tensors' names."""

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.")


class Repack(NamedTuple):
    """How files with one family's transformer alone are known and read.

    Attributes:
        marks: names that together no other family's transformers have, in diffusers' form, unless that
            family has these marks and more.
        translate: from a file's names, without their common prefix, to diffusers'; others stay.
        base: a Hub id of a checkpoint that has the other parts.
    """

    marks: frozenset[str]
    translate: Callable[[Headers], Headers]
    base: str


def strip_prefix(headers: Headers) -> Headers:
    """Take off the prefix of a transformer's names; where a file has one, what lacks it is no part of it."""
    for prefix in _PREFIXES:
        inside = {name.removeprefix(prefix): h for name, h in headers.items() if name.startswith(prefix)}
        if inside:
            return inside
    return headers


def rename(headers: Headers, patterns: Sequence[tuple[str, str]]) -> Headers:
    """Replace in every name what matches the regular expressions, one after another."""
    renamed = {}
    for name, header in headers.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901 - it is the name that changes
        renamed[name] = header
    return renamed


def split_rows(headers: Headers, ending: str, parts: Iterable[str]) -> Headers:
    """Give each of some equal blocks of rows a name of its own.

    The last block has all rows that are left, so that a wrong number gives a shape that will be refused.

    Args:
        headers: by name.
        ending: of the names of fused tensors.
        parts: what replaces it, one for each block.
    """
    split: dict[str, Header] = {}
    names = list(parts)
    for name, header in headers.items():
        if not name.endswith(ending):
            split[name] = header
            continue
        every = header.shape[0] if header.shape else 0
        rows = every // len(names)
        for number, part in enumerate(names):
            start, end = number * rows, every if part == names[-1] else (number + 1) * rows
            shape = (end - start, *header.shape[1:]) if header.shape else ()
            split[name.removesuffix(ending) + part] = header._replace(shape=shape, rows=slice(start, end))
    return split
