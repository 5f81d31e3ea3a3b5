"""Is the server alive, is it ready, what has it done, what can it do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from prometheus_client.exposition import choose_encoder

from twinshot_server import __version__
from twinshot_server.answers import Health, Model, ModelList, OpenAIError
from twinshot_server.engine_protocol import LOADING_ERRORS
from twinshot_server.service import Service, ServiceOf

router = APIRouter(tags=["operations"])

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Not ready."}}
_NOT_ALIVE: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Restart the process."}}
_METRICS: dict[str, Any] = {
    media_type: {"schema": {"type": "string"}}
    for media_type in ("text/plain", "application/openmetrics-text")
}
_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": OpenAIError, "description": "The query is wrong."},
    401: {"model": OpenAIError, "description": "A valid API key is needed."},
    503: {"model": OpenAIError, "description": "The model is loading."},
}

WithVocabulary = Annotated[bool, Query(description="Whether to list the words that the model knows.")]


@router.get("/health", responses=_NOT_READY)
@router.get("/readyz", responses=_NOT_READY)
async def ready(service: ServiceOf, response: Response) -> Health:
    """200 while requests are welcome: an engine is warm and the server does not drain."""
    health = describe_health(service)
    response.status_code = 200 if health.status == "ready" else 503
    return health


@router.get("/startupz", responses=_NOT_READY)
async def started(service: ServiceOf, response: Response) -> Health:
    """200 once the model was loaded, whatever came after."""
    response.status_code = 200 if service.dispatcher.engines.info else 503
    return describe_health(service)


@router.get("/livez", responses=_NOT_ALIVE)
async def alive(service: ServiceOf, response: Response) -> Health:
    """200 unless an engine hangs or ended too often, or images cannot be encoded; also while loading."""
    response.status_code = 200 if service.dispatcher.alive else 503
    return describe_health(service)


@router.get("/metrics", response_class=Response, responses={200: {"content": _METRICS}})
async def metrics(request: Request, service: ServiceOf) -> Response:
    """Metrics in Prometheus' text format."""
    write, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(write(service.metrics.registry), headers={"Content-Type": media_type})


@router.get("/v1/models", responses=_REFUSED)
async def models(service: ServiceOf, vocabulary: WithVocabulary = True) -> ModelList:
    """The loaded model, with the sizes and steps it accepts."""
    info = service.info
    model = Model(
        id=info.name,
        family=info.family,
        device=info.device,
        precision=info.precision,
        description=info.description,
        sizes=[f"{width}x{height}" for width, height in info.sizes],
        size_rule=info.size_rule,
        steps=list(info.steps),
        guided_steps=list(info.guided_steps),
        max_prompt_tokens=info.max_prompt_tokens,
        adapters=service.dispatcher.engines.adapters,
        vocabulary=dict(info.vocabulary) if vocabulary else {},
        examples=list(info.examples),
    )
    return ModelList(data=[model])


def describe_health(service: Service) -> Health:
    """The server's state in words and numbers."""
    dispatcher = service.dispatcher
    status, reason = _status(service)
    return Health(
        status=status,
        reason=reason,
        version=__version__,
        model=dispatcher.engines.info.name if dispatcher.engines.info else None,
        waiting=dispatcher.waiting,
        running=dispatcher.running,
        predicted_wait_ms=round(dispatcher.predicted_wait * 1000, 1),
    )


def _status(service: Service) -> tuple[Any, str | None]:
    dispatcher = service.dispatcher
    engines = dispatcher.engines
    if engines.failure is not None:
        return "failed", _reason(engines.failure)
    if service.lifecycle.draining or dispatcher.closing:
        return "draining", "The server is about to stop."
    if engines.available:
        return "ready", None
    return "restarting" if engines.info else "starting", engines.progress


def _reason(failure: BaseException) -> str:
    """The sentence of an error made for people; others may tell more than strangers should know."""
    if isinstance(failure, LOADING_ERRORS):
        return str(failure)
    return "It failed unexpectedly; the server's log says why."
