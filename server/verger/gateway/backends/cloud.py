"""One request to one provider: a body out, pieces of an answer in, each wait with its deadline.

Called by `failover` (answers) and `provider_check`. The gateway's only module that imports httpx.
Always streams, whatever the client wants: only then can it be told how far an answer has come.
Prompts, answers and keys are never logged.

    connect ── connect_s ──► head ──┐
                                    ├─ first_s, no more than the budget ──► first delta that says
    comments, empty deltas: no life ┘                                       something: the commit
    delta ── idle_s ──► delta …  ──► finish of every choice ── after_finish_s ──► usage, [DONE], end
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar, cast
from uuid import uuid4

import httpx
import msgspec

from verger import __version__
from verger.api.answer import Piece, Usage
from verger.gateway.backends.cloud_request import CloudRequest, Deadlines, Spent
from verger.gateway.backends.event_reader import EventReader, OversizedEvent
from verger.gateway.backends.failure import (
    Fault,
    UpstreamFailure,
    error_object,
    failure_in_band,
    failure_of_status,
)
from verger.gateway.backends.quirks import Signatures
from verger.gateway.backends.upstream_answer import UpstreamAnswer
from verger.gateway.backends.upstream_body import build_body
from verger.gateway.providers import Provider, Target

MAX_CONNECTIONS = 256
MAX_IDLE_CONNECTIONS = 32
IDLE_CONNECTION_S = 60.0
MAX_FAREWELL_S = 0.1
"""Between [DONE] and the end of the body, which nearly always come together."""
MAX_ERROR_BYTES = 64 * 1024
MAX_MODELS_BYTES = 16 * 1024 * 1024
"""OpenRouter's list is half a megabyte."""
EVENT_STREAM = "text/event-stream"

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class CloudBackend:
    """All providers share its connections. Belongs to the event loop."""

    def __init__(
        self,
        deadlines: Deadlines | None = None,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self.deadlines = deadlines or Deadlines()
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._new_id = new_id
        self._signatures = Signatures()
        # trust_env: only the configuration says where prompts go, no proxy variable, no .netrc.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=self.deadlines.connect_s, pool=1.0),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_CONNECTION_S,
            ),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def open_stream(
        self,
        target: Target,
        request: CloudRequest,
        budget_s: float,
        without: frozenset[str] = frozenset(),
    ) -> AsyncGenerator[Piece]:
        """The pieces of an answer, as `Turn.pieces` has them. Raises UpstreamFailure.

        `budget_s` bounds the wait for the first delta; `without` are fields not to send. Closing
        the generator closes the connection, which is how a provider learns that nobody listens.
        """
        answer = UpstreamAnswer(
            request.turn.choices,
            lambda: f"call_{self._new_id()}",
            self._signatures.remember,
        )
        body = _encode(build_body(target, request.turn, self._signatures, without))
        first_until_s = self._monotonic_s() + min(self.deadlines.first_s, budget_s)
        async with self._response(target.provider, body, first_until_s) as response:
            try:
                async for piece in self._pieces(response, answer, first_until_s):
                    yield piece
            finally:
                usage = _usage(answer, request, target)
                request.on_spent(Spent(target, usage, not answer.has_usage))
            for piece in answer.outcomes(usage):
                yield piece

    async def model_ids(self, provider: Provider, budget_s: float) -> frozenset[str]:
        """What the provider lists at /models. Raises UpstreamFailure."""
        until_s = self._monotonic_s() + budget_s
        request = self._http.build_request(
            "GET", f"{provider.base_url}/models", headers=_headers(provider, "application/json")
        )
        async with self._sent(request, until_s) as response:
            content = await self._read(response, MAX_MODELS_BYTES, until_s)
        if response.status_code != 200:
            raise self._refusal(response, content)
        try:
            return frozenset(card.id for card in msgspec.json.decode(content, type=_Models).data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            what = "its /models is no list of models; is base_url the root of its API?"
            raise UpstreamFailure(Fault.BROKEN, what) from None

    @asynccontextmanager
    async def _response(
        self, provider: Provider, body: bytes, until_s: float
    ) -> AsyncIterator[httpx.Response]:
        """A stream of events that has begun; anything else is a failure."""
        headers = _headers(provider, EVENT_STREAM) | {"content-type": "application/json"}
        url = f"{provider.base_url}/chat/completions"
        request = self._http.build_request("POST", url, content=body, headers=headers)
        async with self._sent(request, until_s) as response:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if response.status_code == 200 and kind == EVENT_STREAM:
                yield response
                return
            content = await self._read(response, MAX_ERROR_BYTES, until_s)
            raise self._refusal(response, content)

    def _refusal(self, response: httpx.Response, content: bytes) -> UpstreamFailure:
        if response.status_code != 200:
            return failure_of_status(
                response.status_code, response.headers, content, self._unix_s()
            )
        if error := error_object(content):
            return failure_in_band(error)
        return UpstreamFailure(Fault.BROKEN, "answered with something that is no event stream")

    @asynccontextmanager
    async def _sent(self, request: httpx.Request, until_s: float) -> AsyncIterator[httpx.Response]:
        response = await self._in_time(self._http.send(request, stream=True), until_s)
        try:
            yield response
        finally:
            await response.aclose()

    async def _pieces(
        self, response: httpx.Response, answer: UpstreamAnswer, until_s: float
    ) -> AsyncGenerator[Piece]:
        reader = EventReader()
        async with aclosing(_raw(response)) as chunks:
            while not answer.is_done:
                if answer.has_finished:
                    until_s = min(until_s, self._monotonic_s() + self.deadlines.after_finish_s)
                try:
                    chunk = await self._in_time(anext(chunks, b""), until_s)
                except UpstreamFailure:
                    # How each choice ends is known: what is lost is a usage, or a farewell.
                    if answer.has_finished:
                        return
                    raise
                for piece in _fed(answer, reader, chunk):
                    yield piece
                    until_s = self._monotonic_s() + self.deadlines.idle_s
                if not chunk:
                    break
            if answer.is_done:
                # A connection whose body has been read to its end is used again.
                with suppress(UpstreamFailure):
                    await self._in_time(anext(chunks, b""), self._monotonic_s() + MAX_FAREWELL_S)
        if not answer.has_finished:
            raise UpstreamFailure(Fault.BROKEN, "ended without saying how the answer ends")

    async def _read(self, response: httpx.Response, limit_bytes: int, until_s: float) -> bytes:
        """The body, or as much of it as the limit allows."""
        content = bytearray()
        async with aclosing(_raw(response)) as chunks:
            while len(content) < limit_bytes:
                if not (chunk := await self._in_time(anext(chunks, b""), until_s)):
                    break
                content += chunk
        return bytes(content[:limit_bytes])

    async def _in_time(self, waiting: Awaitable[T], until_s: float) -> T:
        """Await something of httpx's; every way in which it fails becomes an UpstreamFailure."""
        try:
            async with asyncio.timeout(max(until_s - self._monotonic_s(), 0)):
                arrived = await waiting
            # What never makes the loop wait is never cut off by it: a flood of comments.
            if self._monotonic_s() > until_s:
                raise TimeoutError
        except TimeoutError:
            raise UpstreamFailure(Fault.SILENT, "did not answer in time") from None
        except httpx.ConnectTimeout:
            raise UpstreamFailure(Fault.UNREACHABLE, "cannot be reached in time") from None
        except httpx.ConnectError as error:
            raise UpstreamFailure(Fault.UNREACHABLE, f"cannot be reached: {error}") from None
        except httpx.PoolTimeout:
            raise UpstreamFailure(Fault.UNREACHABLE, "has no connection left for us") from None
        except httpx.HTTPError:
            raise UpstreamFailure(Fault.BROKEN, "broke the connection off") from None
        return arrived


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card]


def _raw(response: httpx.Response) -> AsyncGenerator[bytes]:
    """httpx promises only an iterator; as a generator it can be closed."""
    return cast("AsyncGenerator[bytes]", response.aiter_raw())


def _fed(answer: UpstreamAnswer, reader: EventReader, chunk: bytes) -> Iterator[Piece]:
    """Event by event: what comes before a broken one still counts."""
    try:
        events = reader.feed(chunk)
    except OversizedEvent:
        raise UpstreamFailure(Fault.BROKEN, "sent an event without end") from None
    for data in events:
        yield from answer.feed(data)


def _usage(answer: UpstreamAnswer, request: CloudRequest, target: Target) -> Usage:
    if answer.has_usage and answer.has_finished:
        usage = answer.reported_usage()
    else:
        usage = answer.counted_usage(request.prompt_tokens, request.count_text)
    if target.provider.kind.reports_cost:
        return usage
    return msgspec.structs.replace(usage, cost_usd=None)


def _headers(provider: Provider, accept: str) -> dict[str, str]:
    headers = {
        "accept": accept,
        # Compressed events come late, and a bomb would come early.
        "accept-encoding": "identity",
        "user-agent": f"verger/{__version__}",
    }
    if provider.key is not None:
        headers["authorization"] = f"Bearer {provider.key}"
    return headers
