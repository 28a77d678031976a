"""GET /v1/models and /v1/models/{id}: the one served model, also under its aliases."""

from starlette.requests import Request
from starlette.responses import Response

from verger.api.models import ModelCard, encode_model, encode_models, resolve_model
from verger.gateway.service import Service


class Models:
    """The two routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        """Aliases are not listed: they are names of models that are not here."""
        return Response(encode_models([self._card()]), media_type="application/json")

    async def get(self, request: Request) -> Response:
        """Raises ModelNotFound, which lists what there is."""
        settings = self._service.settings
        resolve_model(request.path_params["id"], settings.model_id, settings.aliases)
        return Response(encode_model(self._card()), media_type="application/json")

    def _card(self) -> ModelCard:
        return ModelCard(
            id=self._service.settings.model_id,
            created=self._service.started_unix_s,
            context_length=self._service.context_tokens,
        )
