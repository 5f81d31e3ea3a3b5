"""Type and see: one WebSocket, on which the newest request wins."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self, Unpack

from httpx2.websockets import AsyncWebSocketSession, HTTPXWSException, WebSocketDisconnect
from pydantic import BaseModel, JsonValue, ValidationError
from wsproto.events import BytesMessage, TextMessage
from wsproto.utilities import LocalProtocolError

from twinshot._errors import Answer, APIConnectionError, TwinshotError
from twinshot._events import told_error
from twinshot._options import Options, as_json, check_names
from twinshot._pictures import Picture, Timings, UnknownWord, is_image

_HEADER = struct.Struct("!IIIHH")
"""What precedes each image file: id, seed, microseconds from request to frame, width, height."""
_IDS = 2**32


@dataclass(frozen=True)
class Frame(Picture):
    """The picture of one request.

    Attributes:
        id: what `Realtime.send` returned.
        server_ms: milliseconds from the request's arrival to the sending of the frame.
        timings: what of them went where; all 0 if the server does not tell.
        width: in pixels.
        height: in pixels.
        unknown_words: those of the prompt that the model was never taught.

    Example:
        >>> import asyncio
        >>> from twinshot import AsyncClient, Frame
        >>> async def main():
        ...     async with AsyncClient() as client, client.realtime() as session:
        ...         await session.send("a red car", seed=7)
        ...         async for frame in session:
        ...             return frame
        >>> frame = asyncio.run(main())
        >>> isinstance(frame, Frame), frame.seed, frame.width, frame.height
        (True, 7, 64, 48)
    """

    id: int
    server_ms: float
    timings: Timings
    width: int
    height: int
    unknown_words: tuple[UnknownWord, ...] = ()


@dataclass(frozen=True)
class Superseded:
    """A newer request took the place of this one; no frame comes for it.

    Example:
        >>> from twinshot import Superseded
        >>> Superseded(id=3)
        Superseded(id=3)
    """

    id: int


@dataclass(frozen=True)
class Failed:
    """No frame comes for this request, and why; the session goes on. `id` is None if it could not be read.

    Example:
        >>> import asyncio
        >>> from twinshot import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as client, client.realtime() as session:
        ...         await session.send("a red car", size="9x9")
        ...         async for failed in session:
        ...             return failed
        >>> print(asyncio.run(main()).error)
        The size 9x9 is not supported; supported: 64x48, 32x32.
    """

    id: int | None
    error: TwinshotError


class Realtime:
    """A session: send a request at every keystroke and iterate over what becomes of them.

    The server draws one request at a time and keeps only the newest that waits. Iterating raises
    APIConnectionError when the session ends, and APIResponseError for what no twinshot server sends.

    Example:
        >>> import asyncio
        >>> from twinshot import AsyncClient, Failed, Frame, Superseded
        >>> async def main():
        ...     async with AsyncClient() as client, client.realtime() as session:
        ...         for typed in ("a", "a red", "a red car"):
        ...             newest = await session.send(typed, seed=7)
        ...         async for event in session:
        ...             match event:
        ...                 case Frame(id=number) if number == newest:
        ...                     return event.image.size
        ...                 case Frame() | Superseded():
        ...                     pass
        ...                 case Failed(error=error):
        ...                     raise error
        >>> asyncio.run(main())
        (64, 48)
    """

    def __init__(self, socket: AsyncWebSocketSession, head: Answer) -> None:
        self._socket = socket
        self._head = head
        self._ids = itertools.count(1)
        self._news = _News(type="timings")
        self._end: APIConnectionError | None = None

    async def send(self, prompt: str, **options: Unpack[Options]) -> int:
        """Ask for a frame, JPEG if `format` is missing; returns the id that what becomes of it will have.

        Without a seed every frame has another one. Raises APIConnectionError if the session has ended.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as client, client.realtime() as session:
            ...         return [await session.send("a red car") for _ in range(3)]
            >>> asyncio.run(main())
            [1, 2, 3]
        """
        check_names(options)
        self._check_open()
        number = next(self._ids) % _IDS
        given = {name: value for name, value in options.items() if value is not None}
        try:
            await self._socket.send_text(as_json({"id": number, "prompt": prompt, **given}).decode())
        except (HTTPXWSException, LocalProtocolError) as error:
            raise self._ended(error) from error
        return number

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame | Superseded | Failed:
        while True:
            message = await self._receive()
            if isinstance(message, BytesMessage):
                told, self._news = self._news, _News(type="timings")
                return read_frame(bytes(message.data), told, self._head)
            news = read_news(message, self._head)
            if news.type == "timings":
                self._news = news
            elif news.type == "superseded" and news.id is not None:
                return Superseded(news.id)
            elif news.type == "error":
                return Failed(news.id, told_error(json.dumps(news.problem), self._head))

    async def _receive(self) -> object:
        self._check_open()
        try:
            return await self._socket.receive()
        except HTTPXWSException as error:
            raise self._ended(error) from error

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._end

    def _ended(self, error: Exception) -> APIConnectionError:
        told = f": {error.code} {error.reason}".rstrip() if isinstance(error, WebSocketDisconnect) else ""
        self._end = APIConnectionError(
            f"the session with {self._head.url} has ended{told}", self._head.request_id
        )
        return self._end


@asynccontextmanager
async def open_session(socket: AsyncWebSocketSession, head: Answer) -> AsyncIterator[Realtime]:
    """A session that lives as long as the context.

    The socket works in a task group, which wraps every exception that passes; so those of the context's body
    go past it, and what comes out of it is the socket's own failure.
    """
    raised: BaseException | None = None
    try:
        async with socket:
            try:
                yield Realtime(socket, head)
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised again below
                raised = error
    except ExceptionGroup as group:
        message = f"the session with {head.url} was cut"
        raise APIConnectionError(message, head.request_id) from group
    if raised is not None:
        raise raised


class _News(BaseModel):
    """A text message: the fate of a request, or where the next frame's time went, and words not known."""

    type: str
    id: int | None = None
    problem: JsonValue = None
    timings_ms: Timings = Timings()
    unknown_words: tuple[UnknownWord, ...] = ()


def read_frame(message: bytes, told: _News, head: Answer) -> Frame:
    """A frame from its binary message and what was told before it. Raises APIResponseError."""
    image = message[_HEADER.size :]
    if not is_image(image):
        raise head.unexpected("a frame")
    number, seed, microseconds, width, height = _HEADER.unpack_from(message)
    server_ms = microseconds / 1000
    return Frame(image, seed, number, server_ms, told.timings_ms, width, height, told.unknown_words)


def read_news(message: object, head: Answer) -> _News:
    """What a text message says. Raises APIResponseError."""
    text = message.data if isinstance(message, TextMessage) else ""
    try:
        return _News.model_validate_json(text)
    except ValidationError as error:
        raise head.unexpected("news of a frame") from error
