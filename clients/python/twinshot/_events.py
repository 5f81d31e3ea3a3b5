"""A request's story as it happens: the events of `stream`, and how they are read."""

from __future__ import annotations

from typing import Any, TypeVar

from httpx2 import ServerSentEvent
from pydantic import Base64Bytes, BaseModel, ConfigDict, ValidationError

from twinshot._errors import Answer, APIConnectionError, TwinshotError, status_error
from twinshot._pictures import Generated, Timings, UnknownWord, is_image

T = TypeVar("T", bound=BaseModel)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class Queued(_Event):
    """The request was accepted.

    Attributes:
        request_id: names the request in the server's logs.
        waiting: pictures that wait for an engine, these included.
        predicted_ms: how long the server expects it to take.

    Example:
        >>> from twinshot import Client, Queued
        >>> first = next(Client().stream("a red car"))
        >>> isinstance(first, Queued), first.predicted_ms > 0
        (True, True)
    """

    request_id: str
    waiting: int
    predicted_ms: float


class Started(_Event):
    """An engine draws the picture with this index.

    Example:
        >>> from twinshot import Client, Started
        >>> [event.index for event in Client().stream("a red car") if isinstance(event, Started)]
        [0]
    """

    index: int


class Drawn(_Event):
    """The picture with this index is there; `batch` pictures shared its forward pass.

    Example:
        >>> from twinshot import Client, Drawn
        >>> events = Client().stream("a red car", n=2, seed=7)
        >>> sorted((event.index, event.picture.seed) for event in events if isinstance(event, Drawn))
        [(0, 7), (1, 8)]
    """

    index: int
    picture: Generated
    batch: int = 1


class Done(_Event):
    """Every picture is there; `unknown_words` are those of the prompt that the model was never taught.

    Example:
        >>> from twinshot import Client
        >>> *_, done = Client().stream("a red car")
        >>> done.width, done.height, done.steps
        (64, 48, 1)
    """

    request_id: str
    format: str
    width: int
    height: int
    steps: int
    unknown_words: tuple[UnknownWord, ...] = ()


Event = Queued | Started | Drawn | Done
"""What `stream` yields.

Example:
    >>> from twinshot import Client
    >>> [type(event).__name__ for event in Client().stream("a red car")]
    ['Queued', 'Started', 'Drawn', 'Done']
"""


class _Image(BaseModel):
    """The data of the event `image`."""

    image: Base64Bytes
    index: int
    seed: int
    batch: int = 1
    timings_ms: Timings = Timings()


class Story:
    """Reads events of one request; `head` is the answer they are in, without content."""

    def __init__(self, head: Answer) -> None:
        self._head = head
        self._done = False

    def read(self, told: ServerSentEvent) -> Event | None:
        """The event, or None if it is of a kind that a later server may have.

        Raises APIStatusError for the event `error`, APIResponseError for what cannot be read.
        """
        match told.event:
            case "queued":
                return self._parse(Queued, told)
            case "started":
                return self._parse(Started, told)
            case "image":
                return self._drawn(self._parse(_Image, told))
            case "done":
                self._done = True
                return self._parse(Done, told)
            case "error":
                raise told_error(told.data, self._head)
        return None

    def check_end(self) -> None:
        """Raise APIConnectionError if the events ended before their story did."""
        if not self._done:
            message = f"the events of {self._head.url} ended before every picture was there"
            raise APIConnectionError(message, self._head.request_id)

    def _drawn(self, image: _Image) -> Drawn:
        if not is_image(image.image):
            raise self._head.unexpected("an image")
        picture = Generated(image.image, image.seed, image.timings_ms, self._head.request_id)
        return Drawn(index=image.index, picture=picture, batch=image.batch)

    def _parse(self, model: type[T], told: ServerSentEvent) -> T:
        try:
            return model.model_validate_json(told.data)
        except ValidationError as error:
            raise self._head.unexpected(f"an event {told.event!r} as the API has it") from error


class _Status(BaseModel):
    status: int = 500


def told_error(problem: str, head: Answer) -> TwinshotError:
    """The error that a problem detail tells of inside of an answer that began well."""
    try:
        status = _Status.model_validate_json(problem).status
    except ValidationError:
        return head.unexpected("a problem detail")
    headers: dict[str, Any] = {}
    return status_error(Answer(head.url, status, "", headers, problem.encode(), head.request_id))
