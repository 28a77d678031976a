"""Liveness and readiness. No key is ever needed for them.

`/livez` says that the event loop turns, by answering; `/readyz` (and `/v1/health`, which Saturn
clients expect) that a request would be taken now.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from verger.errors import EngineUnavailable
from verger.gateway.engine_client import EngineState
from verger.gateway.service import Service


class Health:
    """The three probes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def livez(self, request: Request) -> Response:
        """Always 200: answering is the proof."""
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """200 only while the engine is ready, else 503 with the reason."""
        service = self._service
        if service.is_draining:
            raise EngineUnavailable("Verger is shutting down.")
        if service.engine.state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {service.engine.state.value}.")
        return JSONResponse({"status": "ready", "model": service.settings.model_id})
