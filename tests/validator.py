"""What every reply of the API must be, whoever asked: the one validator behind all API tests.

Called by `traffic` for each exchange that it watches. `faults` returns one line per fault and
judges whatever was sent, complete or broken off; must not know who sent or received it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject

from tests.typed_models import type_faults
from verger.bench.chat_rules import Json, answer_faults
from verger.bench.stream_rules import Shapes, stream_faults

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
PAGES = ("/connect",)
"""For people: HTML that may load and run nothing."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what came back."""

    path: str
    request: bytes
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    is_complete: bool
    """The body ended as HTTP has it end; otherwise the connection broke, or the client left."""

    def __str__(self) -> str:
        return f"{self.path} {self.request[:300]!r} → {self.status} {self.body[-600:]!r}"


def faults(exchange: Exchange) -> list[str]:
    """What is wrong with a reply; nothing if it is valid."""
    try:
        return list(_faults(exchange))
    except ValueError as error:
        return [f"body: not JSON, or not UTF-8: {error}"]


def _faults(exchange: Exchange) -> Iterator[str]:
    if not exchange.headers.get("x-request-id"):
        yield "x-request-id: missing"
    kind = exchange.headers.get("content-type", "").partition(";")[0]
    if exchange.status == 200 and kind == "text/event-stream":
        yield from stream_faults(
            json.loads(exchange.request), exchange.body.decode(), exchange.is_complete, SHAPES
        )
        return
    is_preflight = exchange.status == 204 and not exchange.body
    if is_preflight or not exchange.is_complete:
        return
    if exchange.status == 200 and exchange.path in PAGES:
        yield from _page_faults(kind, exchange.headers)
        return
    if kind != "application/json":
        yield f"content-type: {kind!r} is not JSON"
        return
    body = json.loads(exchange.body)
    if exchange.status != 200:
        yield from error_faults(exchange.status, exchange.headers, body)
    elif exchange.path == CHAT:
        yield from completion_faults(json.loads(exchange.request), body)
    elif exchange.path == MODELS:
        yield from _list_faults(body)
    elif exchange.path.startswith(MODELS):
        yield from type_faults(Model, body)


def completion_faults(request: Json, body: Json) -> list[str]:
    """An answer in one piece."""
    if found := type_faults(ChatCompletion, body):
        return found
    if request.get("stream"):
        return ["stream: asked for, and answered in one piece"]
    if body.get("usage") is None:
        return ["usage: missing"]
    return list(answer_faults(request, body))


def error_faults(status: int, headers: Mapping[str, str], body: Any) -> list[str]:
    """A refusal in OpenAI's shape; one that may pass says when to come back."""
    found = _error_object_faults(body)
    retry_after = headers.get("retry-after", "")
    if status in (429, 503) and not (retry_after.isdecimal() and int(retry_after) > 0):
        found.append("retry-after: missing")
    return found


def _error_object_faults(body: Any) -> list[str]:
    if not isinstance(body, dict) or body.keys() != {"error"}:
        return ["error: not an object with nothing but an error"]
    found = type_faults(ErrorObject, body["error"])
    if not found and not (body["error"]["message"] and body["error"]["code"]):
        found.append("error: no message or no code")
    return found


def _page_faults(kind: str, headers: Mapping[str, str]) -> Iterator[str]:
    if kind != "text/html":
        yield f"content-type: {kind!r} is not HTML"
    if not headers.get("content-security-policy", "").startswith("default-src 'none';"):
        yield "content-security-policy: missing, or allows something by default"


def _list_faults(body: Any) -> list[str]:
    if body.keys() != {"object", "data"} or body["object"] != "list":
        return ["models: not a list object"]
    return [fault for model in body["data"] for fault in type_faults(Model, model)]


SHAPES = Shapes(chunk=partial(type_faults, ChatCompletionChunk), error=_error_object_faults)
