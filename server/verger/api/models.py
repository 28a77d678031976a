"""The models routes: what is served, in OpenAI's shape, and the names it answers to.

Called by the models endpoint, and by every endpoint that is given a model's name.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from verger.errors import ModelNotFound

OWNED_BY = "verger"

_encoder = msgspec.json.Encoder()


class ModelCard(Struct, frozen=True, kw_only=True):
    """One served model. `context_length`, in tokens, is not OpenAI's: OpenRouter has it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = OWNED_BY
    context_length: int


class ModelList(Struct, frozen=True, kw_only=True):
    """Everything that is served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def encode_models(cards: list[ModelCard]) -> bytes:
    """Body of GET /v1/models."""
    return _encoder.encode(ModelList(data=cards))


def encode_model(card: ModelCard) -> bytes:
    """Body of GET /v1/models/{id}."""
    return _encoder.encode(card)


def resolve_model(name: str, model_id: str, aliases: Mapping[str, str]) -> str:
    """The served model that a request's name stands for."""
    if name == model_id or aliases.get(name) == model_id:
        return model_id
    known = ", ".join([model_id, *sorted(alias for alias in aliases if aliases[alias] == model_id)])
    raise ModelNotFound(
        f"The model '{name}' does not exist here. Available: {known}.", param="model"
    )
