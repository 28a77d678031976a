"""The outermost layer of the app: every request's id, its error reply and its one log line.

Wrapped around the routes by `app`. Must not know what a route does: endpoints raise a ReplyError
and fill in the record. Nothing of a prompt or an answer is ever logged.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from verger.api.errors import encode_error
from verger.costs.prices import Price
from verger.errors import (
    BodyTooLarge,
    BudgetExhausted,
    InternalError,
    ReplyError,
    RequestTimeout,
)
from verger.gateway.ledger_store import Reservation
from verger.gateway.receive import ClientGone
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

CLIENT_GONE = "client_gone"
RETRY_AFTER_S = 2
PROBES = frozenset({"/livez", "/readyz", "/v1/health"})
_RECORD = "verger.record"


@dataclass(slots=True)
class CloudCall:
    """A call that may cost cash."""

    reservation: Reservation
    price: Price
    said_usd: float | None = None
    """What the provider itself says that it cost."""


@dataclass(slots=True)
class RequestRecord:
    """What the log line and the ledger say of one request; what stays None is left out."""

    id: str
    arrived_s: float
    status: int | None = None
    error: str | None = None
    key: str | None = None
    """The name of the key; None where none was needed, or none was right."""
    client: str | None = None
    """The address that was asked for a key."""
    model: str | None = None
    served_by: str | None = None
    """Who answers, or is expected to."""
    reason: str | None = None
    queue_ms: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    first_delta_s: float | None = None
    finish: str | None = None
    repairs: str | None = None
    """The ways in which the model broke its format."""
    reply_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """What the layers within add to the reply, whatever it will be."""
    model_asked: str | None = None
    reasoning_tokens: int | None = None
    route: str | None = None
    """Where it is answered; None until somebody works on it."""
    provider: str | None = None
    call: CloudCall | None = None
    attempt: int = 1
    """Of several providers that were asked in turn, which one it is."""


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that is being served."""
    record: RequestRecord = scope[_RECORD]
    return record


class Edge:
    """Pure ASGI; outside of Starlette's own handling of unknown routes and methods."""

    def __init__(
        self,
        app: ASGIApp,
        clock: Callable[[], float],
        account: Callable[[RequestRecord, float], None],
    ) -> None:
        """`account` is told of each request at its end, with the seconds that it took."""
        self._app = app
        self._clock = clock
        self._account = account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(id=f"req_{uuid4().hex}", arrived_s=self._clock())
        scope[_RECORD] = record
        try:
            await self._answer(scope, receive, _stamped(send, record))
        finally:
            self._log(scope, record)
            self._account(record, self._clock() - record.arrived_s)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        try:
            await self._app(scope, receive, send)
        except ClientGone:
            record.finish = CLIENT_GONE
        except ReplyError as error:
            await _reply(error, scope, receive, send)
        except Exception:
            logger.exception(key_values(event="defect", id=record.id, path=scope["path"]))
            await _reply(internal_error(), scope, receive, send)

    def _log(self, scope: Scope, record: RequestRecord) -> None:
        elapsed_s = self._clock() - record.arrived_s
        ttft_s = None if record.first_delta_s is None else record.first_delta_s - record.arrived_s
        line = key_values(
            event="request",
            id=record.id,
            method=scope["method"],
            path=scope["path"],
            status=record.status,
            error=record.error,
            key=record.key,
            client=record.client,
            model=record.model,
            served_by=record.served_by,
            reason=record.reason,
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            completion_tokens=record.completion_tokens,
            cost_usd=None if record.cost_usd is None else f"{record.cost_usd:.6f}",
            ttft_ms=None if ttft_s is None else round(ttft_s * 1000),
            tok_s=_tokens_per_second(record.completion_tokens, ttft_s, elapsed_s),
            elapsed_ms=round(elapsed_s * 1000),
            finish=record.finish,
            repairs=record.repairs,
        )
        logger.log(logging.DEBUG if scope["path"] in PROBES else logging.INFO, line)


def error_response(error: ReplyError, headers: Mapping[str, str] | None = None) -> Response:
    """An error in OpenAI's shape."""
    response = Response(encode_error(error), error.status, headers, "application/json")
    if error.status in (429, 503):
        # Some clients give up at once when they are not told when to come back.
        response.headers["retry-after"] = str(error.retry_after_s or RETRY_AFTER_S)
    if isinstance(error, BudgetExhausted):
        # It will be no different in a second, and SDKs try again unless told.
        response.headers["x-should-retry"] = "false"
    if isinstance(error, BodyTooLarge | RequestTimeout):
        # The rest of the body may still be on its way; the connection cannot be used again.
        response.headers["connection"] = "close"
    return response


def internal_error() -> InternalError:
    """What a client is told of a defect; the log has the traceback."""
    return InternalError("An internal error occurred; the server's log has the details.")


async def _reply(error: ReplyError, scope: Scope, receive: Receive, send: Send) -> None:
    """One reply at most: an answer that has begun is left incomplete, and uvicorn cuts it off."""
    record = record_of(scope)
    record.error = error.code
    if record.status is None:
        await error_response(error)(scope, receive, send)


def _stamped(send: Send, record: RequestRecord) -> Send:
    async def send_stamped(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            ours = [*record.reply_headers, (b"x-request-id", record.id.encode())]
            message["headers"] = [*message["headers"], *ours]
        await send(message)

    return send_stamped


def _tokens_per_second(
    completion_tokens: int | None, ttft_s: float | None, elapsed_s: float
) -> float | None:
    """Decoding only: the first token is the prefill's."""
    if completion_tokens is None or ttft_s is None or elapsed_s <= ttft_s:
        return None
    return (completion_tokens - 1) / (elapsed_s - ttft_s)
