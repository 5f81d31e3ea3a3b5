"""Which form the answer takes: an image file or JSON, from `Accept` and the body's `format`."""

from __future__ import annotations

from dataclasses import dataclass

from twinshot_server.errors import ApiError
from twinshot_server.images import ImageFormat

_IMAGES = {image_format.media_type: image_format for image_format in ImageFormat}


@dataclass(frozen=True, slots=True)
class Reply:
    """The image file's format, and whether JSON is wrapped around it."""

    image_format: ImageFormat
    as_json: bool


def choose_reply(accept: str, asked: ImageFormat | None) -> Reply:
    """The client's favourite among what can be sent; an explicit `format` beats `Accept`'s image types.

    Raises ApiError 406 if `accept` names only types that cannot be sent.
    """
    for media_type in _by_preference(accept or "*/*"):
        if media_type == "application/json":
            return Reply(asked or ImageFormat.PNG, as_json=True)
        if media_type in _IMAGES:
            return Reply(asked or _IMAGES[media_type], as_json=False)
        if media_type in {"*/*", "image/*"}:
            return Reply(asked or ImageFormat.PNG, as_json=False)
    known = ", ".join([*_IMAGES, "application/json"])
    raise ApiError(406, "not_acceptable", f"Accept is {accept[:80]!r}; what can be sent is {known}.")


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
