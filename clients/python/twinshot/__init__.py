"""Python client for the twinshot text-to-image server.

from twinshot import Client

Client().generate("a red car left of a tree on a beach").save("out.png")
"""

from twinshot._async_client import AsyncClient
from twinshot._client import Client
from twinshot._errors import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    TwinshotError,
    UnprocessableEntityError,
)
from twinshot._events import Done, Drawn, Event, Queued, Started
from twinshot._options import Options, Request
from twinshot._pictures import Generated, Picture, Timings, UnknownWord
from twinshot._realtime import Failed, Frame, Realtime, Superseded
from twinshot._server import Health, Model

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "Done",
    "Drawn",
    "Event",
    "Failed",
    "Frame",
    "Generated",
    "Health",
    "InternalServerError",
    "Model",
    "NotFoundError",
    "Options",
    "PermissionDeniedError",
    "Picture",
    "Queued",
    "RateLimitError",
    "Realtime",
    "Request",
    "Started",
    "Superseded",
    "Timings",
    "TwinshotError",
    "UnknownWord",
    "UnprocessableEntityError",
]
