"""Chat completions as a client of any server sees them: request bodies, and answers put together.

Used by `replay.py`, `second_turn.py`, `stall.py` and `rates.py`. A conversation is kept in the
types of `formats/conversation.py`, so that the ids of what was sent can be counted afterwards. Must
not know what is measured. Shapes: OpenAI's API reference, "… chunk object"; reasoning by all its
names.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from verger.bench.client import Endpoint, events
from verger.bench.reader import Event, ReadError
from verger.formats.conversation import Conversation, Effort, Message, Role, ToolCall

PATH = "/chat/completions"
MAX_TOOL_CALLS = 128
"""Of one answer."""


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Chunk(Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked: a server, the name that the model has there, and a key for this client."""

    endpoint: Endpoint
    model: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """What a request says beside its conversation."""

    max_tokens: int
    logit_bias: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. Times are of `time.perf_counter`; `first_s` is that of the first text."""

    message: Message
    prompt_tokens: int
    cached_tokens: int
    sent_s: float
    first_s: float
    ended_s: float

    @property
    def ttft_s(self) -> float:
        """Time to first token: to the first piece of reasoning, content or a call."""
        return self.first_s - self.sent_s


@dataclass(slots=True)
class AnswerParts:
    """Adds up the events of one answer."""

    text_s: list[float] = field(default_factory=list)
    """When each event came that brought text."""
    texts: list[str] = field(default_factory=list)
    """What each of them brought, calls aside."""
    _content: str = ""
    _reasoning: str = ""
    _calls: list[ToolCall] = field(default_factory=list)
    _usage: _Usage | None = None

    def feed(self, event: Event) -> bool:
        """Take one event but [DONE]; whether it brought text. Raises ReadError."""
        chunk = _decode(event.data)
        self._usage = chunk.usage or self._usage
        has_text, text = False, ""
        for choice in chunk.choices:
            delta = choice.delta
            content = delta.content or ""
            reasoning = delta.reasoning or delta.reasoning_content or ""
            self._content += content
            self._reasoning += reasoning
            text += reasoning + content
            for call in delta.tool_calls or ():
                self._call(call)
            has_text = has_text or bool(content or reasoning or delta.tool_calls)
        if has_text:
            self.text_s.append(event.at_s)
            self.texts.append(text)
        return has_text

    def answer(self, sent_s: float, ended_s: float) -> Answer:
        """The whole of it; raises ReadError if there is no usage or no text."""
        if self._usage is None:
            raise ReadError("the answer has no usage")
        if not self.text_s:
            raise ReadError("the answer has no text")
        details = self._usage.prompt_tokens_details or _Details()
        return Answer(
            message=Message(
                Role.ASSISTANT, self._content, self._reasoning, tool_calls=tuple(self._calls)
            ),
            prompt_tokens=self._usage.prompt_tokens,
            cached_tokens=details.cached_tokens or 0,
            sent_s=sent_s,
            first_s=self.text_s[0],
            ended_s=ended_s,
        )

    def _call(self, piece: _ToolCall) -> None:
        at = len(self._calls) if piece.index is None else piece.index
        if not 0 <= at <= len(self._calls) or at >= MAX_TOOL_CALLS:
            raise ReadError(f"a tool call with the index {at}")
        if at == len(self._calls):
            self._calls.append(ToolCall(piece.id or f"call_{at}", "", ""))
        known, function = self._calls[at], piece.function
        self._calls[at] = ToolCall(
            known.id,
            known.name + (function.name or ""),
            known.arguments + (function.arguments or ""),
        )


def body_of(conversation: Conversation, model: str, options: Options) -> bytes:
    """The request's JSON: greedy, streamed, with the usage at its end."""
    fields: dict[str, Any] = {
        "model": model,
        "messages": [_wire(message) for message in conversation.messages],
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if conversation.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
            for tool in conversation.tools
        ]
    if conversation.effort is not Effort.MEDIUM:
        fields["reasoning_effort"] = conversation.effort.value
    if options.logit_bias:
        fields["logit_bias"] = dict(options.logit_bias)
    return msgspec.json.encode(fields)


async def stream(
    target: Target, conversation: Conversation, options: Options
) -> AsyncGenerator[Event]:
    """The events of an answer, without the last one, [DONE]; raises ReadError if it is missing."""
    body = body_of(conversation, target.model, options)
    async with aclosing(events(target.endpoint, PATH, body, target.key)) as received:
        async for event in received:
            if event.data == b"[DONE]":
                return
            yield event
    raise ReadError("the stream ended before [DONE]")


async def ask_chat(
    target: Target, conversation: Conversation, options: Options, limit_s: float
) -> Answer:
    """Send a conversation and read its answer. Raises ReadError."""
    parts, sent_s = AnswerParts(), time.perf_counter()
    try:
        async with (
            asyncio.timeout(limit_s),
            aclosing(stream(target, conversation, options)) as received,
        ):
            async for event in received:
                parts.feed(event)
    except TimeoutError:
        raise ReadError(f"no complete answer within {limit_s:.0f} s") from None
    return parts.answer(sent_s, time.perf_counter())


def _decode(data: bytes) -> _Chunk:
    try:
        return msgspec.json.decode(data, type=_Chunk)
    except msgspec.DecodeError:
        raise ReadError(data[:400].decode("utf-8", "replace")) from None


def _wire(message: Message) -> dict[str, Any]:
    """A message as clients send it back."""
    fields: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        fields["reasoning"] = message.reasoning
    if message.tool_calls:
        fields["content"] = message.content or None
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    return fields
