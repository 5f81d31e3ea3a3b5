from __future__ import annotations

import pytest

from twinshot_server.errors import ApiError
from twinshot_server.images import ImageFormat
from twinshot_server.negotiation import Form, Reply, choose_reply

PNG, JPEG, WEBP = ImageFormat.PNG, ImageFormat.JPEG, ImageFormat.WEBP


@pytest.mark.parametrize(
    ("accept", "asked", "expected"),
    [
        ("", None, (PNG, "image")),
        ("*/*", None, (PNG, "image")),
        ("image/*", JPEG, (JPEG, "image")),
        ("image/webp", None, (WEBP, "image")),
        ("IMAGE/JPEG", None, (JPEG, "image")),
        ("text/html, application/xml;q=0.9, */*;q=0.8", None, (PNG, "image")),
        ("image/png;q=0.5, image/jpeg", None, (JPEG, "image")),
        ("image/jpeg;q=0, image/png", None, (PNG, "image")),
        ("image/jpeg;q=high, image/png", None, (PNG, "image")),
        ("image/jpeg", WEBP, (WEBP, "image")),
        ("application/json", None, (PNG, "json")),
        ("application/json", JPEG, (JPEG, "json")),
        ("text/event-stream", JPEG, (JPEG, "events")),
        ("application/json;q=0.1, image/png", None, (PNG, "image")),
    ],
)
def test_choice(accept: str, asked: ImageFormat | None, expected: tuple[ImageFormat, Form]) -> None:
    reply = choose_reply(accept, asked)
    assert (reply.image_format, reply.form) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "nonsense"])
def test_what_cannot_be_sent_is_refused(accept: str) -> None:
    with pytest.raises(
        ApiError, match="image/png, image/jpeg, image/webp, application/json, text/event-stream"
    ) as caught:
        choose_reply(accept, None)
    assert caught.value.status == 406


def test_several_images_go_into_json_or_events() -> None:
    assert choose_reply("*/*", JPEG, images=2).form == "json"
    assert choose_reply("image/png, application/json;q=0.1", None, images=2).form == "json"
    assert choose_reply("text/event-stream", None, images=2).form == "events"
    with pytest.raises(ApiError, match="2 images do not go into one file") as caught:
        choose_reply("image/png, image/*", None, images=2)
    assert caught.value.status == 406


def test_a_stream_is_events_whatever_is_accepted() -> None:
    assert choose_reply("image/png", JPEG, stream=True) == Reply(JPEG, "events")
