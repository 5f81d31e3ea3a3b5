"""WebSocket `/realtime`: type and see. The newest request wins; what it supersedes is dropped and counted.

Opened as `/realtime?timings=true`, it tells before each frame where its time went, and of words not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from typing import Annotated, Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError

from twinshot_server.access.keys import Caller
from twinshot_server.answers import Timings
from twinshot_server.errors import ApiError, as_api_error, error_body
from twinshot_server.images import ImageFormat
from twinshot_server.orders import Order
from twinshot_server.scheduling.jobs import Picture, Priority
from twinshot_server.schemas import GenerateBody
from twinshot_server.service import Service, Terms
from twinshot_server.validation import describe

router = APIRouter()

HEADER = struct.Struct("!IIIHH")
"""What precedes each image file: id, seed, microseconds from request to frame, width, height."""
_PROTOCOL = "twinshot"


class SupersededError(Exception):
    """A newer request took this one's place."""


class _Id(BaseModel):
    id: Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]


@router.websocket("/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Serve one session until the client leaves."""
    service: Service = websocket.app.state.service
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(_PROTOCOL if _PROTOCOL in offered else None)
    service.metrics.realtime_sessions.inc()
    try:
        await Session(websocket, service, websocket.state.caller).run()
    finally:
        service.metrics.realtime_sessions.dec()


class Session:
    """One client: at most one request is drawn for it and one waits, and that is its newest."""

    def __init__(self, websocket: WebSocket, service: Service, caller: Caller) -> None:
        self._websocket = websocket
        self._service = service
        self._caller = caller
        self._tells_timings = websocket.query_params.get("timings") == "true"
        self._newest: tuple[int, GenerateBody, float] | None = None
        self._came = asyncio.Event()
        self._order: Order | None = None

    async def run(self) -> None:
        """Read requests and answer them, until the client leaves."""
        drawing = asyncio.create_task(self._draw_newest())
        try:
            while True:
                await self._read()
        except WebSocketDisconnect:
            pass
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect):
                await drawing

    async def _read(self) -> None:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        number = None
        try:
            fields = _parse(message.get("text"))
            number = _Id.model_validate({"id": fields.pop("id", None)}).id
            body = GenerateBody.model_validate({"format": ImageFormat.JPEG, **fields})
            _check_single(body)
        except ValidationError as error:
            sentence, field = describe(error.errors(), GenerateBody)
            await self._tell_error(number, ApiError(422, "invalid_request", sentence, param=field))
        except ApiError as error:
            await self._tell_error(number, error)
        else:
            await self._take(number, body)

    async def _take(self, number: int, body: GenerateBody) -> None:
        """A new request: it takes the place of one that waits, here or for an engine."""
        superseded, self._newest = self._newest, (number, body, time.monotonic())
        if superseded is not None:
            await self._tell_superseded(superseded[0])
        elif self._order is not None and not self._order.jobs[0].started.done():
            self._order.jobs[0].fail(SupersededError())
        self._came.set()

    async def _draw_newest(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            if self._newest is None:
                continue
            (number, body, came), self._newest = self._newest, None
            try:
                with self._caller.limits.request():
                    await self._draw(number, body, came)
            except SupersededError:
                await self._tell_superseded(number)
            except WebSocketDisconnect:
                raise
            except Exception as error:  # it is told to the client, and the session goes on  # noqa: BLE001
                self._count(as_api_error(error).status, came)
                await self._tell_error(number, as_api_error(error))

    async def _draw(self, number: int, body: GenerateBody, came: float) -> None:
        requests = body.requests(self._service.info.sizes[0])
        image_format = body.format or ImageFormat.JPEG
        terms = Terms(
            image_format, body.quality, Priority.INTERACTIVE, body.deadline_ms, self._caller.name, came
        )
        order = self._order = await self._service.accept(requests, terms)
        try:
            (picture,) = await order.pictures()
        finally:
            self._order = None
        await self._send(number, requests[0].seed, order, picture, came)

    async def _send(self, number: int, seed: int, order: Order, picture: Picture, came: float) -> None:
        if self._tells_timings:
            timings = Timings.of(picture.times).model_dump()
            unknown = [each.model_dump() for each in order.reading.unknown]
            told = {"type": "timings", "id": number, "timings_ms": timings, "unknown_words": unknown}
            await self._websocket.send_text(json.dumps(told))
        seconds = time.monotonic() - came
        header = HEADER.pack(number, seed, int(seconds * 1e6), *order.jobs[0].size)
        await self._websocket.send_bytes(header + picture.content)
        self._count(200, came, len(picture.content))

    def _count(self, status: int, came: float, sent: int = 0) -> None:
        self._service.metrics.count_request(status, time.monotonic() - came, self._caller.name, sent)

    async def _tell_superseded(self, number: int) -> None:
        self._service.metrics.realtime_dropped.inc()
        await self._websocket.send_text(json.dumps({"type": "superseded", "id": number}))

    async def _tell_error(self, number: int | None, error: ApiError) -> None:
        problem = error_body("/realtime", self._websocket.state.request_id, error)
        await self._websocket.send_text(json.dumps({"type": "error", "id": number, "problem": problem}))


def _check_single(body: GenerateBody) -> None:
    if body.n != 1 or body.stream:
        raise ApiError(
            422, "invalid_request", "n and stream: leave them out, a frame is one picture.", param="n"
        )


def _parse(text: str | None) -> dict[str, Any]:
    """The fields of a message. Raises ApiError."""
    try:
        fields = json.loads(text or "")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        message = 'Send a JSON object as text, like {"id": 1, "prompt": "a red car"}.'
        raise ApiError(400, "invalid_request", message)
    return fields
