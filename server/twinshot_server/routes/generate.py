"""`POST /generate`: a prompt in, an image file out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pybase64
from fastapi import APIRouter, Request, Response

from twinshot_server.engine_protocol import complete
from twinshot_server.errors import ApiError
from twinshot_server.images import encode
from twinshot_server.middleware import GENERATE_PATH
from twinshot_server.negotiation import Reply, choose_reply
from twinshot_server.request_queue import Drawn
from twinshot_server.schemas import ErrorBody, GenerateBody, GenerateResult, Timings
from twinshot_server.service import Service, ServiceOf

if TYPE_CHECKING:
    from twinshot_engine.types import GenerateRequest, StageTimes

router = APIRouter()
T = TypeVar("T")

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, as an image file or in JSON.",
        "model": GenerateResult,
        "content": {"image/png": _IMAGE, "image/jpeg": _IMAGE, "image/webp": _IMAGE},
        "headers": {
            "X-Seed": {"description": "The seed that was used.", "schema": {"type": "integer"}},
            "X-Request-Id": {"description": "Names the request in the logs.", "schema": {"type": "string"}},
            "Server-Timing": {"description": "Milliseconds in each stage.", "schema": {"type": "string"}},
        },
    },
    406: {"model": ErrorBody, "description": "`Accept` names nothing that can be sent."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    422: {"model": ErrorBody, "description": "A field is wrong, or the model cannot do what is asked."},
    429: {"model": ErrorBody, "description": "Too many requests wait; see `Retry-After`."},
    503: {"model": ErrorBody, "description": "The model is loading or the server stops; see `Retry-After`."},
}


@router.post(GENERATE_PATH, responses=_RESPONSES, response_class=Response, tags=["pictures"])
async def generate(body: GenerateBody, request: Request, service: ServiceOf) -> Response:
    """Draw one picture. `Accept: application/json` gets it as base64 with its facts."""
    reply = choose_reply(request.headers.get("accept", ""), body.format)
    wanted = complete(body, service.engine)
    request.state.facts.update(seed=wanted.seed, width=wanted.width, height=wanted.height, steps=wanted.steps)
    image, drawn, times = await _unless_gone(request, _draw(service, wanted, reply, body.quality))
    service.metrics.count_image(drawn, times)
    request.state.facts.update(batch=drawn.batch_size, stage_ms=_milliseconds(times).model_dump())
    return _respond(request, reply, image, wanted, times)


async def _draw(
    service: Service, wanted: GenerateRequest, reply: Reply, quality: int | None
) -> tuple[bytes, Drawn, StageTimes]:
    drawn = await asyncio.wrap_future(service.submit(wanted))
    started = time.monotonic()
    image = await asyncio.to_thread(encode, drawn.pixels, reply.image_format, quality)
    return image, drawn, replace(drawn.times, encode=time.monotonic() - started)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "cancelled", "The client went away before its picture was ready.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _milliseconds(times: StageTimes) -> Timings:
    return Timings(**{stage: round(seconds * 1000, 3) for stage, seconds in asdict(times).items()})


def _respond(
    request: Request, reply: Reply, image: bytes, wanted: GenerateRequest, times: StageTimes
) -> Response:
    timings = _milliseconds(times)
    headers = {
        "X-Seed": str(wanted.seed),
        "Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in timings),
        "Cache-Control": "no-store",
    }
    if not reply.as_json:
        return Response(image, headers=headers, media_type=reply.image_format.media_type)
    facts = GenerateResult(
        image="",
        format=reply.image_format,
        width=wanted.width,
        height=wanted.height,
        seed=wanted.seed,
        steps=wanted.steps,
        request_id=request.state.request_id,
        timings_ms=timings,
    )
    return Response(_with_image(facts, image), headers=headers, media_type="application/json")


def _with_image(facts: GenerateResult, image: bytes) -> bytes:
    """The result as JSON; base64 needs no escaping, so the image is joined in past the slow JSON encoder."""
    rest = facts.model_dump_json(exclude={"image"}).encode()
    return b'{"image":"' + pybase64.b64encode(image) + b'",' + rest[1:]
