"""GET /v1/status: what the server is doing, from the engine's last statistics."""

from starlette.requests import Request
from starlette.responses import Response

from verger import __version__
from verger.api.status import GatewayFacts, encode_status, status_of
from verger.gateway.service import Service

DRAINING = "draining"


class ServerStatus:
    """The one route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def get(self, request: Request) -> Response:
        """Always 200: an engine that is not ready is a state like the others."""
        status = status_of(self._facts(), self._service.engine.stats)
        return Response(encode_status(status), media_type="application/json")

    def _facts(self) -> GatewayFacts:
        service, settings = self._service, self._service.settings
        return GatewayFacts(
            id=settings.instance_id,
            name=settings.name,
            version=__version__,
            model=settings.model_id,
            state=DRAINING if service.is_draining else service.engine.state.value,
            uptime_s=service.monotonic_s() - service.started_s,
            lan=service.lan,
            max_rows=settings.max_rows,
            queued=service.engine.queued,
            target_itl_ms=settings.target_itl_ms,
            has_cache=settings.has_prefix_cache,
            has_disk=settings.cache_dir is not None,
        )
