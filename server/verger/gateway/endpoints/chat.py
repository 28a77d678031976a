"""POST /v1/chat/completions: one request from its bytes to its last chunk.

    read body → parse → route → pin date → render → admit → deltas → JSON or SSE → refill
                                                  → providers → deltas → JSON or SSE

Must not know Harmony, the engine's protocol or HTTP to providers.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from verger.api.answer import Delta, Piece, Served, Usage, total_usage
from verger.api.chat_body import MAX_CHOICES
from verger.api.chat_request import ChatRequest, parse_chat_request
from verger.api.chat_response import AnswerHead, ChatChunkEncoder, encode_completion
from verger.api.models import resolve_model
from verger.formats.harmony import Prompt, render
from verger.gateway.cloud_turns import cloud_turn
from verger.gateway.edge import RequestRecord, record_of
from verger.gateway.head_start import head_start
from verger.gateway.principal import Principal, RoutePolicy, principal_of
from verger.gateway.receive import read_body, while_connected
from verger.gateway.refills import Refills
from verger.gateway.route import ONLY_ROUTE, Place, Route, reason_to_leave, route_of_name
from verger.gateway.service import Service
from verger.gateway.sse import DONE, EventStream, Heartbeat, data_frame
from verger.gateway.turns import open_turn
from verger.gateway.vitals import EngineVitals

MAX_INLINE_BYTES = 16 * 1024
"""Longer bodies take milliseconds to parse and render: in a thread, so that streams flow on."""
HEAD_START_S = 2.0
"""How long a stream from elsewhere may keep its headers, for their status and origin to be true."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that has been understood, and where it goes."""

    request: ChatRequest
    prompt: Prompt
    route: Route
    principal: Principal
    record: RequestRecord


@dataclass(frozen=True, slots=True)
class _Answer:
    """What comes of it, wherever it is computed."""

    pieces: AsyncGenerator[Piece]
    note_served: Callable[[], None] = lambda: None
    """Brings up to date what the record says of who answers, why, and what it has waited."""
    is_alive: Callable[[], bool] = lambda: True
    """Whether there is hope; a cloud's deadlines are bounds enough."""


class ChatCompletions:
    """A pure ASGI endpoint: the turn is open for exactly as long as the call lasts."""

    def __init__(self, service: Service, refills: Refills) -> None:
        self._service = service
        self._refills = refills

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await self._prepare(await read_body(scope, receive), scope)
        if asked.route.place is Place.CLOUD:
            await self._answer_from_cloud(asked, scope, receive, send)
        else:
            await self._answer_here(asked, scope, receive, send)

    async def _answer_here(self, asked: _Asked, scope: Scope, receive: Receive, send: Send) -> None:
        service, turn_request = self._service, asked.request.turn
        async with open_turn(
            service, asked.principal, turn_request, asked.prompt, asked.record
        ) as turn:
            vitals = EngineVitals(service.engine, service.monotonic_s)
            answer = _Answer(turn.pieces(), turn.note_served, vitals.is_alive)
            if asked.request.stream:
                response: ASGIApp = self._stream(asked, answer)
            else:
                response = await while_connected(receive, self._complete(asked, answer))
            await response(scope, receive, send)
        self._refills.want(asked.record.id, turn_request.conversation, turn)

    async def _answer_from_cloud(
        self, asked: _Asked, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._note_wait(asked.record)
        turn = cloud_turn(
            self._service,
            asked.principal,
            asked.route.targets,
            asked.request.turn,
            len(asked.prompt.ids),
            asked.record,
        )
        if not asked.request.stream:
            completing = self._complete(asked, _Answer(turn.pieces()))
            await (await while_connected(receive, completing))(scope, receive, send)
            return
        wait_s = min(HEAD_START_S, self._service.settings.heartbeat_s)
        async with AsyncExitStack() as stack:
            begun = stack.enter_async_context(head_start(turn.pieces(), wait_s))
            pieces = await while_connected(receive, begun)
            await self._stream(asked, _Answer(pieces))(scope, receive, send)

    async def _prepare(self, body: bytes, scope: Scope) -> _Asked:
        service, settings, record = self._service, self._service.settings, record_of(scope)
        principal = principal_of(scope)
        vocabulary_size, max_choices = service.vocabulary.size, min(MAX_CHOICES, settings.max_rows)
        is_long = len(body) > MAX_INLINE_BYTES
        request = await _run(
            lambda: parse_chat_request(body, settings.sampling, vocabulary_size, max_choices),
            is_long,
        )
        record.model_asked = request.model
        route = self._route(request, scope)
        record.served_by, record.reason = route.served_by, route.reason
        service.note_unknown_parameters(request.unknown_parameters)
        conversation = service.pin_date(principal.tenant, request.turn.conversation)
        prompt = await _run(lambda: render(conversation, service.vocabulary), is_long)
        request = replace(request, turn=replace(request.turn, conversation=conversation))
        return _Asked(request, prompt, route, principal, record)

    def _route(self, request: ChatRequest, scope: Scope) -> Route:
        """Where it goes; notes under which name the answer will say that it was served."""
        cloud, settings, name = self._service.cloud, self._service.settings, request.model
        is_local = name == settings.model_id or name in settings.aliases
        route = route_of_name(name, is_local, cloud, principal_of(scope))
        if route is None:
            model = resolve_model(name, settings.model_id, settings.aliases)
            record_of(scope).model = model
            return self._away_from_home(model, request, scope) or ONLY_ROUTE
        record_of(scope).model = name
        return dataclasses.replace(route, targets=cloud.fitting(route.targets, request.turn))

    def _away_from_home(self, model: str, request: ChatRequest, scope: Scope) -> Route | None:
        """Where a request for the served model goes while the engine cannot answer."""
        service = self._service
        is_allowed = principal_of(scope).route is not RoutePolicy.LOCAL_ONLY
        if not (service.settings.can_spill and is_allowed):
            return None
        reason = reason_to_leave(service.engine.state)
        targets = service.cloud.spill_targets(model, request.turn) if reason else ()
        return Route(Place.CLOUD, reason, targets) if reason and targets else None

    def _note_wait(self, record: RequestRecord) -> None:
        """What passed in the gateway before anybody was asked."""
        record.queue_ms = round((self._service.monotonic_s() - record.arrived_s) * 1000)

    async def _complete(self, asked: _Asked, answer: _Answer) -> Response:
        collected = [piece async for piece in answer.pieces]
        answer.note_served()
        body = encode_completion(self._head(asked.record), collected, _served(asked.record))
        return Response(body, headers=_headers(asked.record), media_type="application/json")

    def _stream(self, asked: _Asked, answer: _Answer) -> EventStream:
        answer.note_served()
        encoder = ChatChunkEncoder(self._head(asked.record), asked.request.include_usage)
        heartbeat = Heartbeat(
            lambda: data_frame(encoder.heartbeat()),
            self._service.settings.heartbeat_s,
            answer.is_alive,
        )
        return EventStream(_frames(asked, answer, encoder), heartbeat, _headers(asked.record))

    def _head(self, record: RequestRecord) -> AnswerHead:
        assert record.model is not None
        return AnswerHead(
            id=f"chatcmpl-{self._service.new_id()}",
            created=int(self._service.unix_s()),
            model=record.model,
            system_fingerprint=self._service.system_fingerprint,
        )


async def _frames(
    asked: _Asked, answer: _Answer, encoder: ChatChunkEncoder
) -> AsyncGenerator[bytes]:
    for choice in range(asked.request.turn.choices):
        yield data_frame(encoder.first(choice))
    usages: list[Usage] = []
    async with aclosing(answer.pieces) as pieces:
        async for choice, piece in pieces:
            if isinstance(piece, Delta):
                yield data_frame(encoder.delta(choice, piece))
            else:
                usages.append(piece.usage)
                yield data_frame(encoder.finish(choice, piece.finish))
    if asked.request.include_usage:
        answer.note_served()
        yield data_frame(encoder.usage(total_usage(usages), _served(asked.record)))
    yield DONE


def _served(record: RequestRecord) -> Served:
    assert record.served_by is not None
    assert record.reason is not None
    assert record.queue_ms is not None
    return Served(record.served_by, record.reason, record.queue_ms)


def _headers(record: RequestRecord) -> Mapping[str, str]:
    """What is known when they are sent; a stream's usage says what came of it."""
    served = _served(record)
    return {
        "x-verger-served-by": served.served_by,
        "x-verger-reason": served.reason,
        "x-verger-queue-ms": str(served.queue_ms),
    }


async def _run(work: Callable[[], T], is_long: bool) -> T:
    return await asyncio.to_thread(work) if is_long else work()
