"""The client for asyncio programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx2
from httpx2.websockets import AsyncWebSocketSession, WebSocketDisconnect

from twinshot._base import LIMITS, MAX_ANSWER_BYTES, Allowance, BaseClient, Progress
from twinshot._calls import (
    Call,
    health_call,
    models_call,
    picture_call,
    picture_calls,
    realtime_call,
    stream_call,
)
from twinshot._errors import Answer, TwinshotError, status_error
from twinshot._events import Event, Story
from twinshot._options import Options, Request
from twinshot._pictures import Generated
from twinshot._realtime import Realtime, open_session
from twinshot._retries import Retries
from twinshot._server import Health, Model

R = TypeVar("R")
T = TypeVar("T")


class AsyncClient(BaseClient):
    """Connections to one server, kept open between calls, for the tasks of one event loop.

    Args:
        base_url: where the server listens; else `TWINSHOT_BASE_URL`, else http://127.0.0.1:8000.
        api_key: the key that the server asks for; else `TWINSHOT_API_KEY`, else none.
        timeout: the longest a try may take, and the longest silence of a stream, in seconds; connecting may
            take 5 of them.
        max_retries: how often a call is tried again if it fails for a reason that passes.
        transport: for tests, what carries requests instead of the network; httpx2's
            `ASGIWebSocketTransport` carries them to an application in this process.

    Raises what `Client` raises.

    Example:
        >>> import asyncio
        >>> from twinshot import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as client:
        ...         return await client.generate("a red car left of a tree on a beach", seed=7)
        >>> asyncio.run(main()).image.size
        (64, 48)
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 2,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        config = self._configure(base_url, api_key, timeout, max_retries)
        self._http: httpx2.AsyncClient = httpx2.AsyncClient(
            base_url=config.base_url, limits=LIMITS, transport=transport
        )

    async def generate(self, prompt: str, **options: Unpack[Options]) -> Generated:
        """Draw one picture; `Options` tells what can be asked for.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as client:
            ...         return await client.generate("a red car", size="32x32", format="jpeg")
            >>> asyncio.run(main()).format
            'jpeg'
        """
        return await self._send(picture_call(prompt, options))

    @overload
    async def generate_many(
        self,
        prompts: Iterable[str | Request],
        *,
        concurrency: int = 8,
        progress: Progress | None = None,
        return_errors: Literal[False] = False,
        **options: Unpack[Options],
    ) -> list[Generated]: ...

    @overload
    async def generate_many(
        self,
        prompts: Iterable[str | Request],
        *,
        concurrency: int = 8,
        progress: Progress | None = None,
        return_errors: Literal[True],
        **options: Unpack[Options],
    ) -> list[Generated | TwinshotError]: ...

    async def generate_many(
        self,
        prompts: Iterable[str | Request],
        *,
        concurrency: int = 8,
        progress: Progress | None = None,
        return_errors: bool = False,
        **options: Unpack[Options],
    ) -> list[Generated] | list[Generated | TwinshotError]:
        """Draw a picture for every prompt, `concurrency` at a time; the list is in the prompts' order.

        Options are those of every prompt; a prompt given as a `Request` may have its own. `progress(done,
        total)` is called after each picture. The first failure ends the rest and is raised, or, with
        `return_errors`, takes the picture's place in the list.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as client:
            ...         return await client.generate_many(["a red car", "a dog"], seed=7)
            >>> [picture.image.size for picture in asyncio.run(main())]
            [(64, 48), (64, 48)]
        """
        calls = picture_calls(prompts, options, concurrency)
        gate, done = asyncio.Semaphore(concurrency), 0

        async def draw(call: Call[Generated]) -> Any:
            nonlocal done
            async with gate:
                try:
                    outcome: Generated | TwinshotError = await self._send(call)
                except TwinshotError as error:
                    if not return_errors:
                        raise
                    outcome = error
            done += 1
            if progress is not None:
                progress(done, len(calls))
            return outcome

        return await _all_or_none([asyncio.create_task(draw(call)) for call in calls])

    def stream(self, prompt: str, *, n: int = 1, **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """Draw `n` pictures, whose seeds count up, and tell what happens as it happens.

        What fails raises. Leaving the loop early drops what is not drawn yet; `contextlib.aclosing` makes it
        happen at once. The request is sent when the first event is asked for.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as client:
            ...         async for event in client.stream("a red car"):
            ...             print(type(event).__name__)
            >>> asyncio.run(main())
            Queued
            Started
            Drawn
            Done
        """
        return self._events(stream_call(prompt, n, options))

    @asynccontextmanager
    async def realtime(self) -> AsyncIterator[Realtime]:
        """A session on a WebSocket, on which the newest request wins: type and see. See `Realtime`.

        Opening it is not tried again. A session ends with the server; open another one then.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as client, client.realtime() as session:
            ...         await session.send("a red car", seed=7)
            ...         async for frame in session:
            ...             return frame.seed
            >>> asyncio.run(main())
            7
        """
        call = realtime_call()
        response = await self._handshake(call)
        async with aclosing(response):
            socket = AsyncWebSocketSession(
                response.extensions["network_stream"], max_message_size_bytes=MAX_ANSWER_BYTES
            )
            async with open_session(socket, self._answer(call, response)) as session:
                yield session

    async def models(self) -> list[Model]:
        """The loaded models: sizes, steps, longest prompt, known words.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as client:
            ...         return await client.models()
            >>> [model.id for model in asyncio.run(main())]
            ['stub']
        """
        return await self._send(models_call())

    async def health(self) -> Health:
        """The server's state; one that is not ready is no failure.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as client:
            ...         return await client.health()
            >>> asyncio.run(main()).status
            'ready'
        """
        return await self._send(health_call())

    async def close(self) -> None:
        """Close the connections; `async with AsyncClient() as client:` does it by itself.

        Example:
            >>> import asyncio
            >>> from twinshot import AsyncClient
            >>> asyncio.run(AsyncClient().close())
        """
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(exc_type, exc_value, traceback)

    async def _send(self, call: Call[T]) -> T:
        return await self._try(self._whole, call)

    async def _try(self, attempt: Callable[[Call[T]], Awaitable[R]], call: Call[T]) -> R:
        """What the attempt gives in the end, with retries."""
        retries = Retries(self._config.max_retries)
        while True:
            try:
                return await attempt(call)
            except TwinshotError as error:
                pause = retries.pause(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _whole(self, call: Call[T]) -> T:
        """Send once and read the whole answer."""
        with self._telling(call):
            async with asyncio.timeout(self._config.timeout):
                async with aclosing(await self._http.send(self._build(call), stream=True)) as response:
                    return self._result(call, await self._read(call, response))

    async def _head(self, call: Call[Answer]) -> httpx2.Response:
        """Send once and read the answer's head; the content follows, if it is a success."""
        with self._telling(call):
            async with asyncio.timeout(self._config.timeout), AsyncExitStack() as stack:
                response = await self._http.send(self._build(call), stream=True)
                await stack.enter_async_context(aclosing(response))
                if not call.is_answered_by(response.status_code):
                    raise status_error(await self._read(call, response))
                call.read(self._answer(call, response))
                stack.pop_all()
                return response

    async def _handshake(self, call: Call[Answer]) -> httpx2.Response:
        """The answer that begins a WebSocket."""
        try:
            return await self._head(call)
        except WebSocketDisconnect as error:  # how an application in this process says what HTTP calls 403
            raise status_error(self._answer(call, httpx2.Response(403))) from error

    async def _read(self, call: Call[Any], response: httpx2.Response) -> Answer:
        allowance = Allowance(self._config.timeout, call)
        chunks = [allowance.take(chunk) async for chunk in response.aiter_bytes()]
        return self._answer(call, response, b"".join(chunks))

    async def _events(self, call: Call[Answer]) -> AsyncGenerator[Event, None]:
        async with aclosing(await self._try(self._head, call)) as response:
            with self._telling(call):
                story = Story(self._answer(call, response))
                async for told in httpx2.EventSource(response, MAX_ANSWER_BYTES):
                    event = story.read(told)
                    if event is not None:
                        yield event
                story.check_end()


async def _all_or_none(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Every result; the first failure, or being cancelled, cancels the rest."""
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
