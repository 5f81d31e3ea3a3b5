"""One address for several models: OpenAI's field `model` says which.

An application of its own beside those of the models (`import_path: twinshot_server.cluster.gateway:build`),
at `/`. It reads the field, and passes the request on to the application at `/<model>`; what that answers is
passed back as it comes. Whoever calls `/<model>/…` does without it, and must for `/realtime`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from twinshot_server.access.paths import IMAGES
from twinshot_server.errors import ApiError, error_response, with_retry
from twinshot_server.service import unless_gone
from twinshot_server.settings import Settings

_PATIENCE = httpx2.Timeout(10.0, read=None)
"""An answer takes as long as its deadline allows; that is for the model to say."""
_OF_A_CONNECTION = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
_OF_A_REQUEST = _OF_A_CONNECTION | {"host", "content-length", "expect"}


class Gateway:
    """Passes requests on to the applications of `models` at `address`; the first is the default."""

    def __init__(self, models: Sequence[str], address: str, max_body_bytes: int) -> None:
        self._models = models
        self._address = address.rstrip("/")
        self._most = max_body_bytes
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx2.AsyncClient(timeout=_PATIENCE, limits=limits, trust_env=False)

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    async def forward(self, request: Request) -> Response:
        """Pass a request on, by the model that its body names if it is one for OpenAI's API."""
        path = request.url.path
        try:
            body = await self._read(request)
            model = self._choose(body) if path == IMAGES else self._models[0]
            return await self._pass_on(request, f"/{model}{path}", body)
        except ApiError as error:
            return error_response(path, request.headers.get("x-request-id", ""), error)

    async def list_models(self, request: Request) -> Response:
        """Every model under the name that requests call it by."""
        answers = await asyncio.gather(*(self._describe(model, request) for model in self._models))
        refusals = [answer for answer in answers if answer.status_code != 200]
        if refusals:
            return Response(refusals[0].content, refusals[0].status_code, media_type="application/json")
        found = zip(self._models, answers, strict=True)
        data = [{**entry, "id": model} for model, answer in found for entry in answer.json()["data"]]
        return JSONResponse({"object": "list", "data": data})

    async def _describe(self, model: str, request: Request) -> httpx2.Response:
        try:
            return await self._http.get(f"{self._address}/{model}/v1/models", headers=_passed_on(request))
        except httpx2.TransportError:
            return httpx2.Response(503, json={"error": {"message": f"The model {model!r} does not answer."}})

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._most:
                message = f"The body is larger than the {self._most} bytes that are accepted."
                raise ApiError(413, "body_too_large", message, headers={"Connection": "close"})
        return bytes(body)

    def _choose(self, body: bytes) -> str:
        """The model that a body names; a body that cannot be read is for the default to refuse."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            fields = None
        name = fields.get("model") if isinstance(fields, dict) else None
        if name is None:
            return self._models[0]
        if name not in self._models:
            message = f"There is no model {name!r}; there are {', '.join(self._models)}."
            raise ApiError(404, "model_not_found", message, param="model")
        return str(name)

    async def _pass_on(self, request: Request, path: str, body: bytes) -> Response:
        order = httpx2.Request(
            request.method,
            httpx2.URL(self._address + path, query=request.url.query.encode()),
            headers=_passed_on(request),
            content=body,
            extensions={"timeout": _PATIENCE.as_dict()},
        )
        try:
            answer = await unless_gone(request, self._http.send(order, stream=True))
        except httpx2.TransportError:
            raise with_retry(503, "not_ready", "The model does not answer at this moment.", 1.0) from None
        response = StreamingResponse(_pieces(answer), answer.status_code)
        response.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower().decode("latin-1") not in _OF_A_CONNECTION
        ]
        return response


def _passed_on(request: Request) -> list[tuple[bytes, bytes]]:
    return [
        (name, value)
        for name, value in request.headers.raw
        if name.lower().decode("latin-1") not in _OF_A_REQUEST
    ]


async def _pieces(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """An answer as it comes; whoever stops reading it hangs up on the model too."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def create_gateway(models: Sequence[str], address: str, max_body_bytes: int) -> Starlette:
    """The gateway as an ASGI application."""
    gateway = Gateway(models, address, max_body_bytes)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await gateway.close()

    routes = [
        Route("/v1/models", gateway.list_models, methods=["GET"]),
        Route("/{path:path}", gateway.forward, methods=["GET", "POST", "PUT", "DELETE"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def build(arguments: Mapping[str, Any]) -> Any:
    """The Ray Serve application: `models` are their names, `address` is a proxy's, this machine's by default.

    Raises ValueError if no model is named.
    """
    models, address = list(arguments.get("models", ())), arguments.get("address", "http://127.0.0.1:8000")
    if not models:
        raise ValueError("models is empty: name at least one application, such as models: [z-image]")
    from ray import serve

    most = Settings().max_body_bytes
    deployment = serve.deployment(name="Gateway", num_replicas=1, ray_actor_options={"num_cpus": 0.1})
    return deployment(serve.ingress(lambda: create_gateway(models, address, most))()).bind()
