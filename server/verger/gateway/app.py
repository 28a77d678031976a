"""The routes, and what is wrapped around them.

Built by `server` and by tests. The lifespan starts the engine and ends it, the ledger around it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from verger.errors import MethodNotAllowed, ReplyError, RouteNotFound
from verger.gateway.authentication import Authentication
from verger.gateway.cloud_turns import check_purse
from verger.gateway.cors import Cors
from verger.gateway.edge import Edge, error_response, record_of
from verger.gateway.endpoints.chat import ChatCompletions
from verger.gateway.endpoints.connect import Connect
from verger.gateway.endpoints.health import Health
from verger.gateway.endpoints.models import Models
from verger.gateway.endpoints.status import ServerStatus
from verger.gateway.hosts import HostGuard
from verger.gateway.refills import Refills
from verger.gateway.service import Service


def create_app(service: Service) -> Starlette:
    """The whole gateway as one ASGI app."""

    refills = Refills(service)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.accounts.ledger.open()
        await service.engine.start()
        service.cloud.start(lambda: check_purse(service))
        try:
            yield
        finally:
            await service.cloud.close()
            await refills.close()
            await service.admission.close()
            await service.engine.stop(drain_s=0)
            service.keys.close()
            await service.accounts.ledger.close()

    models, health = Models(service), Health(service)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", ChatCompletions(service, refills), methods=["POST"]),
            Route("/v1/models", models.list),
            Route("/v1/models/{id:path}", models.get),
            Route("/v1/status", ServerStatus(service).get),
            Route("/connect", Connect(service).get),
            Route("/livez", health.livez),
            Route("/readyz", health.readyz),
            Route("/v1/health", health.readyz),
        ],
        middleware=[
            Middleware(Edge, clock=service.monotonic_s, account=service.accounts.close),
            Middleware(HostGuard, names=lambda: service.host_names),
            Middleware(Cors, origins=lambda: service.settings.cors_origins),
            Middleware(Authentication, keys=service.keys, clock=service.monotonic_s),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=lifespan,
    )
    # A redirect would be one more reply without a reason, built from what the client says.
    app.router.redirect_slashes = False
    return app


async def _unrouted(request: Request, refusal: Exception) -> Response:
    """Starlette's own 404 and 405, in OpenAI's shape."""
    route = f"{request.method} {request.url.path}"
    headers = refusal.headers if isinstance(refusal, HTTPException) else None
    error: ReplyError = RouteNotFound(f"There is no route {route}.")
    if headers and "Allow" in headers:
        error = MethodNotAllowed(f"There is no {route}; use {headers['Allow']}.")
    record_of(request.scope).error = error.code
    return error_response(error, headers)
