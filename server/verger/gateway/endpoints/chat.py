"""POST /v1/chat/completions: one request from its bytes to its last chunk.

    read body → parse → pin date → render → an answer, here or elsewhere → JSON or SSE → refill

Must not know Harmony, the engine's protocol or HTTP to providers.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import TypeVar

from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from verger.api.answer import Delta, Served, Usage, total_usage
from verger.api.chat_body import MAX_CHOICES
from verger.api.chat_request import ChatRequest, parse_chat_request
from verger.api.chat_response import AnswerHead, ChatChunkEncoder, encode_completion
from verger.api.models import resolve_model
from verger.formats.harmony import render
from verger.gateway.answers import Answer, Asked, open_answer
from verger.gateway.edge import RequestRecord, record_of
from verger.gateway.head_start import head_start
from verger.gateway.named import named_targets
from verger.gateway.principal import Principal, principal_of
from verger.gateway.providers import Target
from verger.gateway.receive import read_body, while_connected
from verger.gateway.refills import Refills
from verger.gateway.service import Service
from verger.gateway.sse import DONE, EventStream, Heartbeat, data_frame

MAX_INLINE_BYTES = 16 * 1024
"""Longer bodies take milliseconds to parse and render: in a thread, so that streams flow on."""
HEAD_START_S = 2.0
"""How long a stream from elsewhere may keep its headers, for their status and origin to be true."""

T = TypeVar("T")


class ChatCompletions:
    """A pure ASGI endpoint: the turn is open for exactly as long as the call lasts."""

    def __init__(self, service: Service, refills: Refills) -> None:
        self._service = service
        self._refills = refills

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, asked = await self._prepare(await read_body(scope, receive), scope)
        async with open_answer(self._service, asked) as answer:
            if not request.stream:
                response = await while_connected(receive, self._complete(asked, answer))
                await response(scope, receive, send)
            elif answer.turn is not None:
                await self._stream(request, asked, answer)(scope, receive, send)
            else:
                await self._stream_from_afar(request, asked, answer, scope, receive, send)
        if answer.turn is not None:
            self._refills.want(asked.record.id, asked.turn.conversation, answer.turn)

    async def _stream_from_afar(
        self,
        request: ChatRequest,
        asked: Asked,
        answer: Answer,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        wait_s = min(HEAD_START_S, self._service.settings.heartbeat_s)
        async with AsyncExitStack() as stack:
            begun = stack.enter_async_context(head_start(answer.pieces, wait_s))
            answer = dataclasses.replace(answer, pieces=await while_connected(receive, begun))
            await self._stream(request, asked, answer)(scope, receive, send)

    async def _prepare(self, body: bytes, scope: Scope) -> tuple[ChatRequest, Asked]:
        service, settings, record = self._service, self._service.settings, record_of(scope)
        principal = principal_of(scope)
        vocabulary_size, max_choices = service.vocabulary_size, min(MAX_CHOICES, settings.max_rows)
        is_long = len(body) > MAX_INLINE_BYTES
        request = await _run(
            lambda: parse_chat_request(body, settings.sampling, vocabulary_size, max_choices),
            is_long,
        )
        record.model_asked = request.model
        named = self._named(request, principal)
        record.model = request.model if named else self._served(request.model)
        service.note_unknown_parameters(request.unknown_parameters)
        conversation = service.pin_date(principal.tenant, request.turn.conversation)
        prompt = await _run(lambda: render(conversation, service.vocabulary), is_long)
        turn = replace(request.turn, conversation=conversation)
        return request, Asked(turn, prompt, principal, record, named)

    def _named(self, request: ChatRequest, principal: Principal) -> tuple[Target, ...]:
        cloud, settings, name = self._service.cloud, self._service.settings, request.model
        is_local = name == settings.model_id or name in settings.aliases
        targets = named_targets(name, is_local, cloud, principal)
        return cloud.fitting(targets, request.turn) if targets else ()

    def _served(self, name: str) -> str:
        return resolve_model(name, self._service.settings.model_id, self._service.settings.aliases)

    async def _complete(self, asked: Asked, answer: Answer) -> Response:
        collected = [piece async for piece in answer.pieces]
        answer.note_served()
        body = encode_completion(self._head(asked.record), collected, _served(asked.record))
        return Response(body, headers=_headers(asked.record), media_type="application/json")

    def _stream(self, request: ChatRequest, asked: Asked, answer: Answer) -> EventStream:
        answer.note_served()
        encoder = ChatChunkEncoder(self._head(asked.record), request.include_usage)
        heartbeat = Heartbeat(
            lambda: data_frame(encoder.heartbeat()),
            self._service.settings.heartbeat_s,
            answer.is_alive,
        )
        return EventStream(
            _frames(request, asked, answer, encoder), heartbeat, _headers(asked.record)
        )

    def _head(self, record: RequestRecord) -> AnswerHead:
        assert record.model is not None
        return AnswerHead(
            id=f"chatcmpl-{self._service.new_id()}",
            created=int(self._service.unix_s()),
            model=record.model,
            system_fingerprint=self._service.system_fingerprint,
        )


async def _frames(
    request: ChatRequest, asked: Asked, answer: Answer, encoder: ChatChunkEncoder
) -> AsyncGenerator[bytes]:
    for choice in range(asked.turn.choices):
        yield data_frame(encoder.first(choice))
    usages: list[Usage] = []
    async with aclosing(answer.pieces) as pieces:
        async for choice, piece in pieces:
            if isinstance(piece, Delta):
                yield data_frame(encoder.delta(choice, piece))
            else:
                usages.append(piece.usage)
                yield data_frame(encoder.finish(choice, piece.finish))
    if request.include_usage:
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
