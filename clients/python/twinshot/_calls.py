"""What can be asked of the server: one function for each, and how its answer is read."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import ValidationError

from twinshot._errors import Answer, status_error
from twinshot._options import Options, Request, as_json, fields_of
from twinshot._pictures import Generated, Timings, UnknownWord, is_image
from twinshot._server import Health, Model, ModelList

SWITCHING_PROTOCOLS = 101

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One thing to ask of the server, as often as it is tried."""

    method: str
    path: str
    read: Callable[[Answer], T]
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    also_accepted: int = 200
    """A status that is no failure, though it looks like one."""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def is_answered_by(self, status: int) -> bool:
        """Whether an answer with this status is what was asked for."""
        return 200 <= status < 300 or status == self.also_accepted


def picture_call(prompt: str | Request, options: Options) -> Call[Generated]:
    """Ask for one picture as an image file. Raises TypeError if an option is unknown."""
    fields = fields_of(prompt, options)

    def read(answer: Answer) -> Generated:
        if not is_image(answer.content):
            raise answer.unexpected("an image")
        timings = Timings.parse(answer.headers.get("server-timing", ""))
        unknown = UnknownWord.parse(answer.headers.get("x-unknown-words", ""))
        return Generated(answer.content, fields["seed"], timings, answer.request_id, unknown)

    return Call("POST", "/generate", read, as_json(fields), _sends_json("image/*"))


def picture_calls(
    prompts: Iterable[str | Request], options: Options, concurrency: int
) -> list[Call[Generated]]:
    """A call for every prompt. Raises TypeError for a text, which is no list of prompts, and ValueError."""
    if isinstance(prompts, str):
        raise TypeError(f"prompts is the text {prompts[:40]!r}; give a list of prompts")
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it must be 1 or more")
    return [picture_call(prompt, options) for prompt in prompts]


def stream_call(prompt: str, n: int, options: Options) -> Call[Answer]:
    """Ask for events; the call's result is the head of their answer."""
    body = as_json({**fields_of(prompt, options), "n": n, "stream": True})

    def read(head: Answer) -> Answer:
        if head.media_type != "text/event-stream":
            raise head.unexpected("events")
        return head

    return Call("POST", "/generate", read, body, _sends_json("text/event-stream"))


def realtime_call() -> Call[Answer]:
    """Ask for a WebSocket (RFC 6455); the call's result is the head of the answer."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
    }

    def read(head: Answer) -> Answer:
        if head.status != SWITCHING_PROTOCOLS:
            raise head.unexpected("a WebSocket")
        return head

    return Call("GET", "/realtime?timings=true", read, headers=headers, also_accepted=SWITCHING_PROTOCOLS)


def models_call() -> Call[list[Model]]:
    """Ask for the models."""

    def read(answer: Answer) -> list[Model]:
        try:
            return ModelList.model_validate_json(answer.content).data
        except ValidationError as error:
            raise answer.unexpected("a list of models") from error

    return Call("GET", "/v1/models", read)


def health_call() -> Call[Health]:
    """Ask for the state, which also comes with a 503."""

    def read(answer: Answer) -> Health:
        try:
            return Health.model_validate_json(answer.content)
        except ValidationError as error:
            raise (
                answer.unexpected("its state") if answer.status == 200 else status_error(answer)
            ) from error

    return Call("GET", "/health", read, also_accepted=503)


def _sends_json(accept: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Accept": accept}
