"""What can be asked of a picture, and the bodies that ask for it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict

Format = Literal["png", "jpeg", "webp"]
Priority = Literal["interactive", "batch"]

_SEEDS = 2**32


class Options(TypedDict, total=False):
    """What a picture should be like. What is missing or None is the server's choice.

    Attributes:
        seed: whole number from 0 to 4294967295; chosen here if missing.
        size: `"WIDTHxHEIGHT"`, short for the next two.
        width: in pixels, together with height.
        height: in pixels, together with width.
        steps: steps along the schedule; more is slower.
        guidance: 1 to 20, how strongly each step follows the prompt; for the model's `guided_steps` alone.
        format: `"png"`, `"jpeg"` or `"webp"`.
        quality: 1 to 100, for jpeg and webp.
        deadline_ms: have it refused at once if it would take longer.
        priority: `"batch"` lets interactive requests pass.
        adapter: the name of a loaded adapter.

    Example:
        >>> from twinshot import Client, Options
        >>> small: Options = {"size": "32x32", "format": "jpeg"}
        >>> Client().generate("a red car", **small).image.size
        (32, 32)
    """

    seed: int | None
    size: str | None
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    format: Format | None
    quality: int | None
    deadline_ms: int | None
    priority: Priority | None
    adapter: str | None


class Request(Options, total=False):
    """A prompt with options of its own, for `generate_many`.

    Example:
        >>> from twinshot import Client, Request
        >>> asked: list[Request] = [{"prompt": "a red car", "seed": seed} for seed in (7, 8)]
        >>> [picture.seed for picture in Client().generate_many(asked)]
        [7, 8]
    """

    prompt: Required[str]


def fields_of(prompt: str | Request, options: Options) -> dict[str, Any]:
    """The body's fields: the prompt, options that it does not bring itself, nothing that is None, and a seed.

    A seed that is fixed before the first try makes a retry draw the same picture. Raises TypeError if an
    option is unknown.
    """
    own: Mapping[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else prompt
    given = {name: value for name, value in {**options, **own}.items() if value is not None}
    check_names(given)
    return {"seed": secrets.randbelow(_SEEDS), **given}


def check_names(given: Mapping[str, object]) -> None:
    """Raise TypeError if an option is unknown."""
    known = Request.__annotations__
    for name in given:
        if name not in known:
            raise TypeError(f"there is no option {name!r}; known are {', '.join(known)}")


def as_json(fields: Mapping[str, object]) -> bytes:
    """A body. Raises TypeError or ValueError for what JSON cannot hold."""
    return json.dumps(fields, allow_nan=False).encode()
