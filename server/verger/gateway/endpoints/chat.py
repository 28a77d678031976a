"""POST /v1/chat/completions: one request from its bytes to its last chunk.

    read body → parse → resolve model → pin date → render → admit → deltas → JSON or SSE → refill

Must not know Harmony or the engine's protocol.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from verger.api.answer import Delta, Usage, total_usage
from verger.api.chat_body import MAX_CHOICES
from verger.api.chat_request import ChatRequest, parse_chat_request
from verger.api.chat_response import AnswerHead, ChatChunkEncoder, encode_completion
from verger.api.models import resolve_model
from verger.formats.harmony import Prompt, render
from verger.gateway.edge import RequestRecord, record_of
from verger.gateway.principal import principal_of
from verger.gateway.receive import read_body, while_connected
from verger.gateway.refills import Refills
from verger.gateway.service import Service
from verger.gateway.sse import DONE, EventStream, Heartbeat, data_frame
from verger.gateway.turns import Turn, open_turn
from verger.gateway.vitals import EngineVitals

MAX_INLINE_BYTES = 16 * 1024
"""Longer bodies take milliseconds to parse and render: in a thread, so that streams flow on."""

T = TypeVar("T")


class ChatCompletions:
    """A pure ASGI endpoint: the turn is open for exactly as long as the call lasts."""

    def __init__(self, service: Service, refills: Refills) -> None:
        self._service = service
        self._refills = refills

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record, principal = record_of(scope), principal_of(scope)
        body = await read_body(scope, receive)
        request, prompt = await self._prepare(body, principal.tenant, record)
        async with open_turn(self._service, principal, request.turn, prompt, record) as turn:
            response: ASGIApp = (
                self._stream(turn, request.include_usage)
                if request.stream
                else await while_connected(receive, self._complete(turn))
            )
            await response(scope, receive, send)
        self._refills.want(record.id, request.turn.conversation, turn)

    async def _prepare(
        self, body: bytes, tenant: str, record: RequestRecord
    ) -> tuple[ChatRequest, Prompt]:
        service, settings = self._service, self._service.settings
        vocabulary_size, max_choices = service.vocabulary.size, min(MAX_CHOICES, settings.max_rows)
        is_long = len(body) > MAX_INLINE_BYTES
        request = await _run(
            lambda: parse_chat_request(body, settings.sampling, vocabulary_size, max_choices),
            is_long,
        )
        record.model_asked = request.model
        record.model = resolve_model(request.model, settings.model_id, settings.aliases)
        service.note_unknown_parameters(request.unknown_parameters)
        conversation = service.pin_date(tenant, request.turn.conversation)
        prompt = await _run(lambda: render(conversation, service.vocabulary), is_long)
        return replace(request, turn=replace(request.turn, conversation=conversation)), prompt

    async def _complete(self, turn: Turn) -> Response:
        pieces = [piece async for piece in turn.pieces()]
        body = encode_completion(self._head(), pieces, turn.served)
        return Response(body, headers=_headers(turn), media_type="application/json")

    def _stream(self, turn: Turn, include_usage: bool) -> EventStream:
        encoder = ChatChunkEncoder(self._head(), include_usage)
        heartbeat = Heartbeat(
            lambda: data_frame(encoder.heartbeat()),
            self._service.settings.heartbeat_s,
            EngineVitals(self._service.engine, self._service.monotonic_s).is_alive,
        )
        return EventStream(_frames(turn, encoder, include_usage), heartbeat, _headers(turn))

    def _head(self) -> AnswerHead:
        return AnswerHead(
            id=f"chatcmpl-{self._service.new_id()}",
            created=int(self._service.unix_s()),
            model=self._service.settings.model_id,
            system_fingerprint=self._service.system_fingerprint,
        )


def _headers(turn: Turn) -> Mapping[str, str]:
    """What is known when they are sent; a stream's usage says what came of it."""
    served = turn.served
    return {
        "x-verger-served-by": served.served_by,
        "x-verger-reason": served.reason,
        "x-verger-queue-ms": str(served.queue_ms),
    }


async def _frames(
    turn: Turn, encoder: ChatChunkEncoder, include_usage: bool
) -> AsyncGenerator[bytes]:
    for choice in range(turn.choices):
        yield data_frame(encoder.first(choice))
    usages: list[Usage] = []
    async with aclosing(turn.pieces()) as pieces:
        async for choice, piece in pieces:
            if isinstance(piece, Delta):
                yield data_frame(encoder.delta(choice, piece))
            else:
                usages.append(piece.usage)
                yield data_frame(encoder.finish(choice, piece.finish))
    if include_usage:
        yield data_frame(encoder.usage(total_usage(usages), turn.served))
    yield DONE


async def _run(work: Callable[[], T], is_long: bool) -> T:
    return await asyncio.to_thread(work) if is_long else work()
