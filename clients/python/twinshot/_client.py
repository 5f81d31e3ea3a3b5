"""The client for programs that wait for each answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx2

from twinshot._base import LIMITS, MAX_ANSWER_BYTES, Allowance, BaseClient, Progress
from twinshot._calls import Call, health_call, models_call, picture_call, picture_calls, stream_call
from twinshot._errors import Answer, TwinshotError, status_error
from twinshot._events import Event, Story
from twinshot._options import Options, Request
from twinshot._pictures import Generated
from twinshot._retries import Retries
from twinshot._server import Health, Model

R = TypeVar("R")
T = TypeVar("T")


class _Connections(httpx2.Client):
    """Closes itself with its last client, so that `Client().generate(...)` leaves nothing open."""

    def __del__(self) -> None:
        with suppress(Exception):  # when the interpreter ends, much is gone already
            self.close()


class Client(BaseClient):
    """Connections to one server, kept open between calls. Threads may share it.

    Args:
        base_url: where the server listens; else `TWINSHOT_BASE_URL`, else http://127.0.0.1:8000.
        api_key: the key that the server asks for; else `TWINSHOT_API_KEY`, else none.
        timeout: the longest a try may take, and the longest silence of a stream, in seconds; connecting may
            take 5 of them.
        max_retries: how often a call is tried again if it fails for a reason that passes.
        transport: for tests, what carries requests instead of the network.

    Raises TwinshotError if a setting cannot be. Calls raise APIStatusError if the server refuses or fails,
    APIConnectionError if no whole answer comes, APIResponseError if it is none that the API gives.

    Example:
        >>> from twinshot import Client
        >>> with Client() as client:
        ...     picture = client.generate("a red car left of a tree on a beach", seed=7)
        >>> picture.image.size
        (64, 48)
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 2,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        config = self._configure(base_url, api_key, timeout, max_retries)
        self._http: httpx2.Client = _Connections(base_url=config.base_url, limits=LIMITS, transport=transport)

    def generate(self, prompt: str, **options: Unpack[Options]) -> Generated:
        """Draw one picture; `Options` tells what can be asked for.

        Example:
            >>> from twinshot import Client
            >>> picture = Client().generate("a red car", size="32x32", format="jpeg", quality=80)
            >>> picture.format, picture.image.size
            ('jpeg', (32, 32))
        """
        return self._send(picture_call(prompt, options))

    @overload
    def generate_many(
        self,
        prompts: Iterable[str | Request],
        *,
        concurrency: int = 8,
        progress: Progress | None = None,
        return_errors: Literal[False] = False,
        **options: Unpack[Options],
    ) -> list[Generated]: ...

    @overload
    def generate_many(
        self,
        prompts: Iterable[str | Request],
        *,
        concurrency: int = 8,
        progress: Progress | None = None,
        return_errors: Literal[True],
        **options: Unpack[Options],
    ) -> list[Generated | TwinshotError]: ...

    def generate_many(
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
            >>> from twinshot import Client
            >>> pictures = Client().generate_many(
            ...     ["a red car", {"prompt": "a blue car", "seed": 8}],
            ...     seed=7,
            ...     progress=lambda done, total: print(f"{done} of {total}"),
            ... )
            1 of 2
            2 of 2
            >>> [picture.seed for picture in pictures]
            [7, 8]
        """
        calls = picture_calls(prompts, options, concurrency)
        ended = threading.Event()

        def draw(call: Call[Generated]) -> Any:
            try:
                return self._try(self._whole, call, ended.wait)
            except TwinshotError as error:
                if return_errors:
                    return error
                raise

        with ThreadPoolExecutor(concurrency, "twinshot") as pool:
            drawing = [pool.submit(draw, call) for call in calls]
            try:
                for done, future in enumerate(as_completed(drawing), 1):
                    future.result()
                    if progress is not None:
                        progress(done, len(calls))
            except BaseException:
                ended.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in drawing]

    def stream(self, prompt: str, *, n: int = 1, **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Draw `n` pictures, whose seeds count up, and tell what happens as it happens.

        What fails raises. Leaving the loop early drops what is not drawn yet. The request is sent when the
        first event is asked for.

        Example:
            >>> from twinshot import Client, Drawn
            >>> for event in Client().stream("a red car", n=2, seed=7):
            ...     if isinstance(event, Drawn):
            ...         print(event.picture.image.size)
            (64, 48)
            (64, 48)
        """
        return self._events(stream_call(prompt, n, options))

    def models(self) -> list[Model]:
        """The loaded models: sizes, steps, longest prompt, known words.

        Example:
            >>> from twinshot import Client
            >>> [model.id for model in Client().models()]
            ['stub']
        """
        return self._send(models_call())

    def health(self) -> Health:
        """The server's state; one that is not ready is no failure.

        Example:
            >>> from twinshot import Client
            >>> Client().health().status
            'ready'
        """
        return self._send(health_call())

    def close(self) -> None:
        """Close the connections; `with Client() as client:` does it by itself.

        Example:
            >>> from twinshot import Client
            >>> client = Client()
            >>> client.close()
        """
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        return self._try(self._whole, call)

    def _try(
        self, attempt: Callable[[Call[T]], R], call: Call[T], wait: Callable[[float], object] | None = None
    ) -> R:
        """What the attempt gives in the end; `wait` pauses, and is true if there shall be no more tries."""
        retries = Retries(self._config.max_retries)
        while True:
            try:
                return attempt(call)
            except TwinshotError as error:
                pause = retries.pause(error)
                if pause is None or (wait or time.sleep)(pause):
                    raise

    def _whole(self, call: Call[T]) -> T:
        """Send once and read the whole answer."""
        allowance = Allowance(self._config.timeout, call)
        with self._telling(call), closing(self._http.send(self._build(call), stream=True)) as response:
            return self._result(call, self._read(call, response, allowance))

    def _head(self, call: Call[Answer]) -> httpx2.Response:
        """Send once and read the answer's head; the content follows, if it is a success."""
        allowance = Allowance(self._config.timeout, call)
        with self._telling(call), ExitStack() as stack:
            response = stack.enter_context(closing(self._http.send(self._build(call), stream=True)))
            if not call.is_answered_by(response.status_code):
                raise status_error(self._read(call, response, allowance))
            call.read(self._answer(call, response))
            stack.pop_all()
            return response

    def _read(self, call: Call[Any], response: httpx2.Response, allowance: Allowance) -> Answer:
        content = b"".join(map(allowance.take, response.iter_bytes()))
        return self._answer(call, response, content)

    def _events(self, call: Call[Answer]) -> Generator[Event, None, None]:
        with closing(self._try(self._head, call)) as response, self._telling(call):
            story = Story(self._answer(call, response))
            for told in httpx2.EventSource(response, MAX_ANSWER_BYTES):
                event = story.read(told)
                if event is not None:
                    yield event
            story.check_end()
