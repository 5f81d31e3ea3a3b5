from __future__ import annotations

import pytest

from twinshot_server.errors import ApiError
from twinshot_server.images import ImageFormat
from twinshot_server.negotiation import choose_reply

PNG, JPEG, WEBP = ImageFormat.PNG, ImageFormat.JPEG, ImageFormat.WEBP


@pytest.mark.parametrize(
    ("accept", "asked", "expected"),
    [
        ("", None, (PNG, False)),
        ("*/*", None, (PNG, False)),
        ("image/*", JPEG, (JPEG, False)),
        ("image/webp", None, (WEBP, False)),
        ("IMAGE/JPEG", None, (JPEG, False)),
        ("text/html, application/xml;q=0.9, */*;q=0.8", None, (PNG, False)),
        ("image/png;q=0.5, image/jpeg", None, (JPEG, False)),
        ("image/jpeg;q=0, image/png", None, (PNG, False)),
        ("image/jpeg;q=high, image/png", None, (PNG, False)),
        ("image/jpeg", WEBP, (WEBP, False)),
        ("application/json", None, (PNG, True)),
        ("application/json", JPEG, (JPEG, True)),
        ("application/json;q=0.1, image/png", None, (PNG, False)),
    ],
)
def test_choice(accept: str, asked: ImageFormat | None, expected: tuple[ImageFormat, bool]) -> None:
    reply = choose_reply(accept, asked)
    assert (reply.image_format, reply.as_json) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "nonsense"])
def test_what_cannot_be_sent_is_refused(accept: str) -> None:
    with pytest.raises(ApiError, match="image/png, image/jpeg, image/webp, application/json") as caught:
        choose_reply(accept, None)
    assert caught.value.status == 406
