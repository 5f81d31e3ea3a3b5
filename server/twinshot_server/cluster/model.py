"""One model as a Ray Serve application: `import_path: twinshot_server.cluster.model:build`.

Requests go from the proxy straight to a replica's own HTTP server; nothing but the proxy stands between.
What the configuration of a deployment says, such as `autoscaling_config` or `ray_actor_options`, wins over
what is here.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from twinshot_server.app import create_app
from twinshot_server.logs import configure_logs
from twinshot_server.service import Service
from twinshot_server.settings import Settings

AUTOSCALING: Mapping[str, float] = {
    "min_replicas": 1,
    "max_replicas": 8,
    # One is drawn and one waits; an open session of /realtime counts as one.
    "target_ongoing_requests": 2,
    "upscale_delay_s": 10,
    "downscale_delay_s": 300,
}
_SESSIONS = 64


class UnhealthyError(Exception):
    """The replica cannot draw any more, and should be replaced."""


class Model:
    """A replica, as Ray sees it; `app` is the application that it serves."""

    app: FastAPI

    def check_health(self) -> None:
        """Raise UnhealthyError where `/livez` would answer 503."""
        service: Service = self.app.state.service
        if not service.dispatcher.alive:
            raise UnhealthyError("an engine hangs or ended too often, or images cannot be encoded")


def build(arguments: Mapping[str, Any]) -> Any:
    """The Ray Serve application of one model.

    `arguments` are fields of Settings, and `gpus` and `cpus`, which each replica has for itself: one of each,
    or no GPU where `device` is cpu. Raises pydantic's ValidationError.
    """
    from ray import serve

    fields = dict(arguments)
    gpus = float(fields.pop("gpus", 0 if fields.get("device") == "cpu" else 1))
    cpus = float(fields.pop("cpus", 1))
    settings = Settings(**fields)
    deployment = serve.deployment(
        name="Model",
        ray_actor_options={"num_gpus": gpus, "num_cpus": cpus},
        # More than ever wait: who is refused is for admission to say, with a reason and when to come back.
        max_ongoing_requests=settings.max_queue + _SESSIONS,
        autoscaling_config=dict(AUTOSCALING),
        graceful_shutdown_timeout_s=settings.drain_seconds + settings.shutdown_seconds,
        health_check_period_s=2.0,
    )
    return deployment(serve.ingress(lambda: make_app(fields))(Model)).bind()


def make_app(fields: Mapping[str, Any]) -> FastAPI:
    """The server's application, whose start ends when its model is warm: until then Ray sends no requests.

    API keys come from the replica's environment, as does every setting that `fields` leaves out.
    """
    settings = Settings(**fields)
    configure_logs(settings.log_level, settings.log_format)
    app = create_app(settings)
    start = app.router.lifespan_context

    @asynccontextmanager
    async def warm_first(served: FastAPI) -> AsyncIterator[None]:
        async with start(served):
            await asyncio.wrap_future(served.state.service.dispatcher.ready)
            gc.collect()
            gc.freeze()  # what is there by now stays
            yield

    app.router.lifespan_context = warm_first
    return app
