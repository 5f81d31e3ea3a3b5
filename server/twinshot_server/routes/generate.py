"""`POST /generate`: a prompt in; an image file, JSON or events out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from twinshot_engine.types import GenerateRequest
from twinshot_server.access.paths import GENERATE
from twinshot_server.answers import GenerateResult, ImageResult, Timings, describe_problem
from twinshot_server.errors import as_api_error, error_body
from twinshot_server.events import EventStream, describe_events, event, with_base64
from twinshot_server.negotiation import Reply, choose_reply
from twinshot_server.orders import Order
from twinshot_server.scheduling.jobs import Picture
from twinshot_server.schemas import GenerateBody
from twinshot_server.service import CallerOf, Service, ServiceOf, Terms, unless_gone

router = APIRouter()

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture as an image file, or one or more in JSON or events.",
        "model": GenerateResult,
        "content": {
            **{f"image/{name}": _IMAGE for name in ("png", "jpeg", "webp")},
            **describe_events("queued", "started", "image", "done", "error"),
        },
        "headers": {
            "X-Seed": {"description": "The seed that was used.", "schema": {"type": "integer"}},
            "X-Request-Id": {"description": "Names the request in the logs.", "schema": {"type": "string"}},
            "Server-Timing": {"description": "Milliseconds in each stage.", "schema": {"type": "string"}},
            "X-Unknown-Words": {
                "description": "With an image file: words the model was never taught, each with those "
                "drawn instead, or nothing; form-encoded. Absent where it knows all of them.",
                "schema": {"type": "string"},
                "example": "lions=tigers&xyz=",
            },
        },
    },
    400: describe_problem("The body is no JSON that could be read."),
    401: describe_problem("A valid API key is needed."),
    406: describe_problem("`Accept` names nothing that can be sent."),
    408: describe_problem("The body took too long to arrive."),
    413: describe_problem("The body is too large."),
    422: describe_problem("A field is wrong, or the model cannot do what is asked."),
    429: describe_problem("Too much waits, or the key's limit is reached; see `Retry-After`."),
    500: describe_problem("The server failed."),
    503: describe_problem("The model is loading or the server stops; see `Retry-After`."),
    504: describe_problem("It was accepted, but not done by its deadline."),
}


@router.post(GENERATE, responses=RESPONSES, response_class=Response, tags=["pictures"])
async def generate(body: GenerateBody, request: Request, service: ServiceOf, caller: CallerOf) -> Response:
    """Draw pictures of one prompt. `Accept` chooses between a file, JSON and events."""
    reply = choose_reply(request.headers.get("accept", ""), body.format, images=body.n, stream=body.stream)
    requests = body.requests(service.info.sizes[0])
    terms = Terms(
        reply.image_format, body.quality, body.priority, body.deadline_ms, caller.name, request.state.arrived
    )
    note_request(request, requests)
    order = await service.accept(requests, terms)
    if reply.form == "events":
        return EventStream(_events(request, service, order, reply), {"X-Seed": str(requests[0].seed)})
    pictures = await unless_gone(request, order.pictures())
    note_pictures(request, pictures)
    return _respond(request, reply, order, pictures)


def note_request(request: Request, requests: list[GenerateRequest]) -> None:
    """Have the log line tell what was asked for; never the prompt."""
    first = requests[0]
    request.state.facts.update(
        seed=first.seed, width=first.width, height=first.height, steps=first.steps, n=len(requests)
    )


def note_pictures(request: Request, pictures: list[Picture]) -> None:
    """Have the log line tell where the time went."""
    last = pictures[-1]
    request.state.facts.update(batch=last.together, stage_ms=Timings.of(last.times).model_dump())


def _respond(request: Request, reply: Reply, order: Order, pictures: list[Picture]) -> Response:
    requests = [job.request for job in order.jobs]
    headers = {
        "X-Seed": str(requests[0].seed),
        "Server-Timing": Timings.of(pictures[-1].times).header(),
        "Cache-Control": "no-store",
    }
    if reply.form == "image":
        if order.reading.unknown:
            headers["X-Unknown-Words"] = urlencode(
                [(each.word, each.nearest or "") for each in order.reading.unknown]
            )
        return Response(pictures[0].content, headers=headers, media_type=reply.image_format.media_type)
    images = [_image(index, requests[index], picture) for index, picture in enumerate(pictures)]
    facts = _facts(request, reply, order).model_dump_json(exclude={"images"}).encode()
    content = b'{"images":[' + b",".join(images) + b"]," + facts[1:]
    return Response(content, headers=headers, media_type="application/json")


def _facts(request: Request, reply: Reply, order: Order) -> GenerateResult:
    first = order.jobs[0].request
    return GenerateResult(
        images=[],
        format=reply.image_format,
        width=first.width,
        height=first.height,
        steps=first.steps,
        unknown_words=list(order.reading.unknown),
        request_id=request.state.request_id,
    )


def _image(index: int, asked: GenerateRequest, picture: Picture) -> bytes:
    facts = ImageResult(
        image="",
        index=index,
        seed=asked.seed,
        batch=picture.together,
        timings_ms=Timings.of(picture.times),
    )
    return with_base64("image", picture.content, facts.model_dump_json(exclude={"image"}).encode())


async def _events(request: Request, service: Service, order: Order, reply: Reply) -> AsyncIterator[bytes]:
    """The order's story. The status is 200 by then, so the log's and the metrics' outcome is told apart."""
    facts, requests = request.state.facts, [job.request for job in order.jobs]
    facts["outcome"] = 499  # should the client leave and end this
    try:
        yield event("queued", _queued(request, service, order))
        async for change, index in order.changes():
            if change == "started":
                yield event("started", b'{"index":%d}' % index)
                continue
            picture = order.jobs[index].done.result()
            note_pictures(request, [picture])
            yield event("image", _image(index, requests[index], picture))
        yield event("done", _facts(request, reply, order).model_dump_json(exclude={"images"}).encode())
        facts["outcome"] = 200
    except Exception as error:  # it is told in the stream, as the answer has begun  # noqa: BLE001
        told = as_api_error(error)
        facts.update(outcome=told.status, error=told.code)
        yield event("error", json.dumps(error_body(GENERATE, request.state.request_id, told)).encode())
    finally:
        order.cancel()


def _queued(request: Request, service: Service, order: Order) -> bytes:
    story = {
        "request_id": request.state.request_id,
        "waiting": service.dispatcher.waiting,
        "predicted_ms": round(order.predicted * 1000, 1),
    }
    return json.dumps(story).encode()
