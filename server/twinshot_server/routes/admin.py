"""Calls under `/admin`, on their own key: draining, and adapters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from twinshot_server.answers import Health, describe_problem
from twinshot_server.errors import ApiError
from twinshot_server.routes.health import describe_health
from twinshot_server.service import ServiceOf

_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: describe_problem("The body is no JSON that could be read."),
    401: describe_problem("The admin key is needed."),
    403: describe_problem("The key may not call this."),
    408: describe_problem("The body took too long to arrive."),
    413: describe_problem("The body is too large."),
    422: describe_problem("The engine cannot do that."),
    503: describe_problem("No engine is ready."),
}
router = APIRouter(prefix="/admin", tags=["admin"], responses=_RESPONSES)

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class AdapterSource(BaseModel):
    """Where an adapter comes from."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, Field(min_length=1, max_length=1000)] = Field(
        description="A path on the server, or whatever else the engine reads adapters from."
    )


class Adapters(BaseModel):
    """The adapters that requests may name."""

    adapters: list[str]


@router.post("/drain")
async def drain(service: ServiceOf) -> Health:
    """Be unready from now on, serve for the drain time, then refuse new requests. The process stays."""
    service.lifecycle.drain()
    return describe_health(service)


@router.get("/adapters")
async def adapters(service: ServiceOf) -> Adapters:
    """The adapters that are loaded."""
    return Adapters(adapters=service.dispatcher.adapters)


@router.put("/adapters/{name}")
async def load_adapter(name: Name, body: AdapterSource, service: ServiceOf) -> Adapters:
    """Load an adapter into every engine, between two batches."""
    await service.dispatcher.change_adapter(name, body.source)
    return Adapters(adapters=service.dispatcher.adapters)


@router.delete("/adapters/{name}", responses={404: describe_problem("There is no such adapter.")})
async def unload_adapter(name: Name, service: ServiceOf) -> Adapters:
    """Unload an adapter from every engine."""
    if name not in service.dispatcher.adapters:
        raise ApiError(404, "not_found", f"The adapter {name!r} is not loaded.", param="name")
    await service.dispatcher.change_adapter(name, None)
    return Adapters(adapters=service.dispatcher.adapters)
