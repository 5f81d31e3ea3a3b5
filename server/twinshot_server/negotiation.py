"""Which form the answer takes: an image file, JSON or events, from `Accept` and the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twinshot_server.errors import ApiError
from twinshot_server.images import ImageFormat

Form = Literal["image", "json", "events"]

EVENTS = "text/event-stream"
_IMAGES = {image_format.media_type: image_format for image_format in ImageFormat}
_FORMS: dict[str, Form] = {"application/json": "json", EVENTS: "events"}


@dataclass(frozen=True, slots=True)
class Reply:
    """The image files' format, and what is wrapped around them."""

    image_format: ImageFormat
    form: Form


def choose_reply(accept: str, asked: ImageFormat | None, *, images: int = 1, stream: bool = False) -> Reply:
    """The client's favourite among what can be sent; an explicit `format` beats `Accept`'s image types.

    `stream` asks for events whatever `accept` says. Several images go into JSON where anything is accepted.
    Raises ApiError 406 if `accept` names only what cannot be sent.
    """
    if stream:
        return Reply(asked or ImageFormat.PNG, "events")
    for media_type in _by_preference(accept or "*/*"):
        if media_type in _FORMS:
            return Reply(asked or ImageFormat.PNG, _FORMS[media_type])
        if images > 1 and media_type == "*/*":
            return Reply(asked or ImageFormat.PNG, "json")
        if images == 1 and media_type in _IMAGES:
            return Reply(asked or _IMAGES[media_type], "image")
        if images == 1 and media_type in {"*/*", "image/*"}:
            return Reply(asked or ImageFormat.PNG, "image")
    known = ", ".join([*(_IMAGES if images == 1 else ()), *_FORMS])
    several = "" if images == 1 else f"{images} images do not go into one file; "
    raise ApiError(406, "not_acceptable", f"{several}Accept is {accept[:80]!r}; what can be sent is {known}.")


def _by_preference(accept: str) -> list[str]:
    """The media types of an Accept header, most wanted first; those with q=0 left out."""
    weighted = [_weigh(entry) for entry in accept.split(",")]
    return [name for name, weight in sorted(weighted, key=lambda pair: -pair[1]) if weight > 0]


def _weigh(entry: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in entry.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, float(parameter[2:])
            except ValueError:
                return name, 0.0
    return name, 1.0
