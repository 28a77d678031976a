"""Liveness and readiness. No key is ever needed for them.

`/livez` says that the event loop turns, by answering; `/readyz` (and `/v1/health`, which Saturn
clients expect) that a request would be taken now. All carry the server's id, so that a client can
tell whether this is the server it knows before it sends a key.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from verger.errors import EngineUnavailable
from verger.gateway.edge import error_response, record_of
from verger.gateway.engine_client import EngineState
from verger.gateway.service import Service


class Health:
    """The three probes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._headers = {"x-verger-id": service.settings.instance_id}

    async def livez(self, request: Request) -> Response:
        """Always 200: answering is the proof."""
        return JSONResponse({"status": "alive"}, headers=self._headers)

    async def readyz(self, request: Request) -> Response:
        """200 only while the engine is ready, else 503 with the reason."""
        if (reason := self._red_reason()) is not None:
            error = EngineUnavailable(reason)
            record_of(request.scope).error = error.code
            return error_response(error, self._headers)
        body = {"status": "ready", "model": self._service.settings.model_id}
        return JSONResponse(body, headers=self._headers)

    def _red_reason(self) -> str | None:
        service = self._service
        if service.is_draining:
            return "Verger is shutting down."
        if service.engine.state is not EngineState.READY:
            if service.engine.state is EngineState.NO_WEIGHTS:
                return service.settings.no_weights
            if service.engine.state is EngineState.SAFE_MODE:
                return "Verger is in safe mode, as its engine does not stay up: see /v1/status."
            return f"The engine is {service.engine.state.value}."
        return None
