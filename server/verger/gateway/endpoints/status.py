"""GET /v1/status: what the server is doing, from the engine's last statistics."""

from starlette.requests import Request
from starlette.responses import Response

from verger import __version__
from verger.api.status import Admission as AdmissionStatus
from verger.api.status import GatewayFacts, KeyActivity, encode_status, status_of
from verger.gateway.admission import Admission
from verger.gateway.principal import Principal, principal_of
from verger.gateway.routing import Place
from verger.gateway.service import Service

DRAINING = "draining"


class ServerStatus:
    """The one route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def get(self, request: Request) -> Response:
        """Always 200: an engine that is not ready is a state like the others."""
        facts = self._facts(principal_of(request.scope))
        status = status_of(facts, self._service.engine.stats)
        return Response(encode_status(status), media_type="application/json")

    def _facts(self, principal: Principal) -> GatewayFacts:
        service, settings = self._service, self._service.settings
        return GatewayFacts(
            id=settings.instance_id,
            name=settings.name,
            version=__version__,
            model=settings.model_id,
            state=DRAINING if service.is_draining else service.engine.state.value,
            uptime_s=service.monotonic_s() - service.started_s,
            start_reason=service.start.reason.value,
            cautious=service.start.is_cautious,
            next_probe_s=service.engine.next_probe_s,
            lan=service.lan,
            admission=_admission(service.admission),
            max_rows=settings.max_rows,
            queued=service.engine.queued,
            target_itl_ms=settings.target_itl_ms,
            has_cache=settings.has_prefix_cache,
            has_disk=settings.cache_dir is not None,
            needs_key=service.keys.needs_key,
            keys=self._activities(principal),
            has_tls=service.tls is not None,
        )

    def _activities(self, principal: Principal) -> list[KeyActivity]:
        """Only an admin sees what others do."""
        return [
            KeyActivity(
                name=held.key.name,
                tenant=held.key.tenant,
                running=held.running,
                requests=held.requests,
            )
            for held in self._service.keys.held
            if principal.is_admin or held.key.prefix == principal.key_id
        ]


def _admission(admission: Admission) -> AdmissionStatus:
    scores, decisions, rates = admission.scores, admission.decisions, admission.rates
    return AdmissionStatus(
        rule="forecast" if scores.is_trusted else "queue depth",
        ttft_objective_s=admission.limits.ttft_objective_s,
        max_wait_s=admission.limits.max_wait_s,
        longest_wait_s=round(admission.longest_wait_s, 1),
        answered_at_once=decisions[Place.LOCAL],
        queued=decisions[Place.QUEUE],
        spilled=decisions[Place.CLOUD],
        refused=decisions[Place.REJECT],
        scored=len(scores),
        median_error=_rounded(scores.median_error),
        wrong_decisions=_rounded(scores.wrong_share),
        prompt_tokens_per_s=round(1 / rates.alone_s, 1) if rates.is_measured else None,
        step_ms=round(rates.step_s * 1000, 1) if rates.is_measured else None,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
