"""`POST /v1/images/generations`: OpenAI's images API, so that its clients work unchanged."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pybase64
from fastapi import APIRouter, Request, Response

from twinshot_server.access.paths import IMAGES
from twinshot_server.answers import OpenAIError
from twinshot_server.errors import as_api_error, error_body
from twinshot_server.events import EventStream, describe_events, event, with_base64
from twinshot_server.openai_schemas import USAGE, ImagesBody, ImagesResult
from twinshot_server.orders import Order
from twinshot_server.routes.generate import note_pictures, note_request
from twinshot_server.scheduling.jobs import Picture
from twinshot_server.service import CallerOf, ServiceOf, Terms, unless_gone

router = APIRouter()
_COMPLETED = "image_generation.completed"

_STATUSES = {
    400: "A field is wrong, or the model cannot do what is asked.",
    401: "A valid API key is needed.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    429: "Too much waits, or the key's limit is reached; see `Retry-After`.",
    500: "The server failed.",
    503: "The model is loading or the server stops; see `Retry-After`.",
    504: "It was accepted, but not done by its deadline.",
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": ImagesResult, "content": describe_events(_COMPLETED, "error")},
    **{status: {"model": OpenAIError, "description": text} for status, text in _STATUSES.items()},
}


@router.post(IMAGES, responses=_RESPONSES, response_class=Response, tags=["OpenAI"])
async def create_images(body: ImagesBody, request: Request, service: ServiceOf, caller: CallerOf) -> Response:
    """Draw pictures as OpenAI's API has it; `stream` answers with events."""
    requests = body.requests(service.info)
    terms = Terms(
        body.output_format,
        body.file_quality,
        body.priority,
        body.deadline_ms,
        caller.name,
        request.state.arrived,
    )
    note_request(request, requests)
    order = await service.accept(requests, terms)
    if body.stream:
        return EventStream(_events(request, order, body))
    pictures = await unless_gone(request, order.pictures())
    note_pictures(request, pictures)
    return _respond(body, order, pictures)


def _respond(body: ImagesBody, order: Order, pictures: list[Picture]) -> Response:
    facts = {"created": int(time.time()), **body.echo(order.jobs[0].request), "usage": USAGE}
    images = b",".join(_image(body, order, picture) for picture in pictures)
    content = b'{"data":[' + images + b"]," + json.dumps(facts).encode()[1:]
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})


def _image(body: ImagesBody, order: Order, picture: Picture) -> bytes:
    media_type = body.output_format.media_type
    name, start = ("url", f"data:{media_type};base64,") if body.response_format == "url" else ("b64_json", "")
    revised = _revised(body, order)
    rest = b'",' + json.dumps(revised).encode()[1:] if revised else b'"}'
    return f'{{"{name}":"{start}'.encode() + pybase64.b64encode(picture.content) + rest


def _revised(body: ImagesBody, order: Order) -> dict[str, str]:
    """The prompt as it was drawn, where words in it were not known."""
    return {"revised_prompt": order.reading.prompt} if order.reading.prompt != body.prompt else {}


async def _events(request: Request, order: Order, body: ImagesBody) -> AsyncIterator[bytes]:
    """One `image_generation.completed` for each picture: at one step there is nothing partial to show."""
    facts = request.state.facts
    facts["outcome"] = 499  # should the client leave and end this
    try:
        async for change, index in order.changes():
            if change == "done":
                picture = order.jobs[index].done.result()
                note_pictures(request, [picture])
                told = {
                    "type": _COMPLETED,
                    "created_at": int(time.time()),
                    **body.echo(order.jobs[index].request),
                    **_revised(body, order),
                }
                rest = json.dumps({**told, "usage": USAGE}).encode()
                yield event(_COMPLETED, with_base64("b64_json", picture.content, rest))
        facts["outcome"] = 200
    except Exception as error:  # it is told in the stream, as the answer has begun  # noqa: BLE001
        told_error = as_api_error(error)
        facts.update(outcome=told_error.status, error=told_error.code)
        answer = error_body(IMAGES, request.state.request_id, told_error)
        yield event("error", json.dumps({"type": "error", **answer}).encode())
    finally:
        order.cancel()
