"""OpenAI's error shape, used by every route that speaks an OpenAI API.

Called by the gateway's edge and by streams that fail midway. Must not know HTTP.
"""

import msgspec
from msgspec import UNSET, Struct, UnsetType

from verger.errors import ReplyError


class ErrorFields(Struct, frozen=True):
    """What OpenAI's clients read."""

    message: str
    type: str
    param: str | None
    code: str
    partial: bool | UnsetType = UNSET
    """True where a part of the answer has been lost on the way; not OpenAI's."""


class ErrorBody(Struct, frozen=True):
    """The whole body."""

    error: ErrorFields


_encoder = msgspec.json.Encoder()


def encode_error(error: ReplyError) -> bytes:
    """JSON of an error, for a response's body or an event's data."""
    return _encoder.encode(
        ErrorBody(
            ErrorFields(
                error.message, error.type, error.param, error.code, error.is_partial or UNSET
            )
        )
    )
