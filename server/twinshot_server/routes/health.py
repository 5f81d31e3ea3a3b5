"""Is the server alive, is it ready, what has it done, what can it do."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from twinshot_server import __version__
from twinshot_server.engine_protocol import LOADING_ERRORS
from twinshot_server.schemas import ErrorBody, Health, Model, ModelList
from twinshot_server.service import Service, ServiceOf

router = APIRouter(tags=["operations"])

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Not ready."}}


@router.get("/health", responses=_NOT_READY)
@router.get("/readyz", responses=_NOT_READY)
def ready(service: ServiceOf, response: Response) -> Health:
    """200 once the model is loaded and warm, else 503. Ask this before sending requests."""
    health = _health(service)
    response.status_code = 200 if health.status == "ready" else 503
    return health


@router.get(
    "/livez", responses={503: {"model": Health, "description": "The engine's thread is gone: restart."}}
)
def alive(service: ServiceOf, response: Response) -> Health:
    """200 as long as the engine's thread runs, even while the model loads. Restart the process if not."""
    response.status_code = 200 if service.dispatcher.alive else 503
    return _health(service)


@router.get("/metrics", response_class=Response)
def metrics(request: Request, service: ServiceOf) -> Response:
    """Metrics in Prometheus' text format."""
    write, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(write(service.metrics.registry), headers={"Content-Type": media_type})


@router.get("/v1/models", responses={503: {"model": ErrorBody, "description": "The model is loading."}})
def models(service: ServiceOf) -> ModelList:
    """The loaded model, with the sizes and steps it accepts."""
    info = service.engine.info
    model = Model(
        id=info.name,
        family=info.family,
        device=info.device,
        precision=info.precision,
        description=info.description,
        sizes=[f"{width}x{height}" for width, height in info.sizes],
        size_rule=info.size_rule,
        steps=list(info.steps),
        max_prompt_tokens=info.max_prompt_tokens,
        vocabulary=dict(info.vocabulary),
    )
    return ModelList(data=[model])


def _reason(failure: BaseException | None) -> str | None:
    """The sentence of an error made for people; others may tell more than strangers should know."""
    unexpected = "unexpectedly; the server's log says why" if failure else None
    return str(failure) if isinstance(failure, LOADING_ERRORS) else unexpected


def _health(service: Service) -> Health:
    dispatcher = service.dispatcher
    engine, failure = dispatcher.engine, dispatcher.failure
    return Health(
        status="ready" if engine else "failed" if failure else "starting",
        reason=_reason(failure),
        version=__version__,
        model=engine.info.name if engine else None,
        waiting=dispatcher.waiting,
        running=dispatcher.running,
    )
