"""Chat completions: deltas and outcome → the JSON of a completion object, or of its chunks.

Called by the chat endpoint. Must not know HTTP or SSE framing. Shapes: OpenAI's API reference,
"The chat completion object" and "… chunk object"; `reasoning` as OpenRouter and vLLM have it. The
usage says who answered too: a stream's headers are sent before that is certain.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from verger.api.answer import (
    Delta,
    Outcome,
    Piece,
    Served,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    total_usage,
)
from verger.formats.harmony.events import Finish

_encode = msgspec.json.Encoder().encode


class AnswerHead(Struct, frozen=True):
    """What every object of one answer repeats; `created` in Unix seconds."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    reasoning_tokens: int


class ChatUsage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    served_by: str
    reason: str
    queue_ms: int
    cost_usd: float | UnsetType = UNSET
    """What a cloud provider asks for the answer; not OpenAI's."""


class ChatLogprobs(Struct, frozen=True):
    content: Sequence[TokenLogprob]
    refusal: None = None


class Function(Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class DeltaToolCall(Struct, frozen=True, kw_only=True):
    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: Function


class ChunkDelta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: Sequence[DeltaToolCall] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    index: int
    delta: ChunkDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChunkChoice]
    usage: ChatUsage | None | UnsetType


class MessageToolCall(Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: Function


class ChatMessage(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType
    tool_calls: Sequence[MessageToolCall] | UnsetType


class ChatChoice(Struct, frozen=True, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChatChoice]
    usage: ChatUsage


class ChatChunkEncoder:
    """The chunks of one streamed answer; those of each choice in the order of the methods."""

    def __init__(self, head: AnswerHead, include_usage: bool) -> None:
        self._head = head
        # With include_usage every chunk has the field, null in all but the last.
        self._no_usage: None | UnsetType = None if include_usage else UNSET
        self._open_choices: set[int] = set()

    def first(self, choice: int) -> bytes:
        """Says who speaks."""
        self._open_choices.add(choice)
        return self._chunk(choice, ChunkDelta(role="assistant", content=""))

    def heartbeat(self) -> bytes:
        """Adds nothing to a choice that is still open; for clients that give up on silence."""
        return self._chunk(min(self._open_choices, default=0), ChunkDelta())

    def delta(self, choice: int, delta: Delta) -> bytes:
        """Content, reasoning and pieces of tool calls."""
        chunk_delta = ChunkDelta(
            content=delta.content or UNSET,
            reasoning=delta.reasoning or UNSET,
            tool_calls=[_delta_tool_call(call) for call in delta.tool_calls] or UNSET,
        )
        return self._chunk(choice, chunk_delta, logprobs=_logprobs(delta.logprobs))

    def finish(self, choice: int, finish: Finish) -> bytes:
        """Says why the choice ended."""
        self._open_choices.discard(choice)
        return self._chunk(choice, ChunkDelta(), finish_reason=finish)

    def usage(self, usage: Usage, served: Served) -> bytes:
        """The trailing chunk that `include_usage` asks for."""
        return self._encode((), _usage(usage, served))

    def _chunk(
        self,
        choice: int,
        delta: ChunkDelta,
        finish_reason: Finish | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> bytes:
        changed = ChunkChoice(
            index=choice, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )
        return self._encode((changed,), self._no_usage)

    def _encode(
        self,
        choices: Sequence[ChunkChoice],
        usage: ChatUsage | None | UnsetType,
    ) -> bytes:
        head = self._head
        chunk = ChatChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=choices,
            usage=usage,
        )
        return _encode(chunk)


def encode_completion(head: AnswerHead, pieces: Sequence[Piece], served: Served) -> bytes:
    """The whole answer as one object; the last piece of each choice is its outcome."""
    pieces_by_choice: dict[int, list[Delta | Outcome]] = {}
    for index, piece in pieces:
        pieces_by_choice.setdefault(index, []).append(piece)
    return _encode(
        ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=[_choice(*choice) for choice in sorted(pieces_by_choice.items())],
            usage=_usage(
                total_usage([piece.usage for _, piece in pieces if isinstance(piece, Outcome)]),
                served,
            ),
        )
    )


def _choice(index: int, pieces: Sequence[Delta | Outcome]) -> ChatChoice:
    *_, outcome = pieces
    assert isinstance(outcome, Outcome)
    deltas = [piece for piece in pieces if isinstance(piece, Delta)]
    return ChatChoice(
        index=index,
        message=_message(deltas),
        finish_reason=outcome.finish,
        logprobs=_logprobs([logprob for delta in deltas for logprob in delta.logprobs]),
    )


def _message(deltas: Sequence[Delta]) -> ChatMessage:
    content = "".join(delta.content for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    tool_calls = _whole_tool_calls(deltas)
    return ChatMessage(
        # Null says "there is a call instead"; an empty answer is an empty string.
        content=None if tool_calls and not content else content,
        reasoning=reasoning or UNSET,
        tool_calls=tool_calls or UNSET,
    )


def _whole_tool_calls(deltas: Sequence[Delta]) -> list[MessageToolCall]:
    pieces: dict[int, list[ToolCallDelta]] = {}
    for delta in deltas:
        for piece in delta.tool_calls:
            pieces.setdefault(piece.index, []).append(piece)
    return [
        MessageToolCall(
            id=call[0].id,
            function=Function(
                name=call[0].name, arguments="".join(piece.arguments for piece in call)
            ),
        )
        for call in pieces.values()
    ]


def _delta_tool_call(call: ToolCallDelta) -> DeltaToolCall:
    if not call.id:
        return DeltaToolCall(index=call.index, function=Function(arguments=call.arguments))
    function = Function(name=call.name, arguments=call.arguments)
    return DeltaToolCall(index=call.index, id=call.id, type="function", function=function)


def _logprobs(content: Sequence[TokenLogprob]) -> ChatLogprobs | None:
    return ChatLogprobs(content) if content else None


def _usage(usage: Usage, served: Served) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(usage.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(usage.reasoning_tokens),
        served_by=served.served_by,
        reason=served.reason,
        queue_ms=served.queue_ms,
        cost_usd=UNSET if usage.cost_usd is None else usage.cost_usd,
    )
