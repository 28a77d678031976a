"""A turn → the body of a chat completions request, in the words of one kind of provider.

Called by `cloud` before each attempt, and by whoever chooses providers: `unsupported` says what a
kind cannot honour. Pure. Must not know HTTP. A parameter is sent only where the kind's file lists
it: an unknown one is a 400 at some providers and silently ignored at others.
"""

from collections.abc import Iterator
from typing import Any

from verger.api.turn_request import TurnRequest
from verger.formats.conversation import Effort, Message, Role, Tool, ToolCall
from verger.gateway.backends.quirks import QUIRKS, Body, Signatures
from verger.gateway.providers import Kind, Target
from verger.messages import Sampling

MAX_ANSWER_TOKENS = 32_768
"""Of an answer whose request names no limit: what it may cost must be known beforehand."""

STRIPPABLE = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "reasoning_effort",
        "stream_options",
        "store",
    }
)
"""What may be left out, once, if a provider refuses it: it is an answer to the same question."""

_NEUTRAL = Sampling()


def build_body(
    target: Target, turn: TurnRequest, signatures: Signatures, without: frozenset[str] = frozenset()
) -> Body:
    """The request; it always asks for a stream and for its usage."""
    kind = target.provider.kind
    body: Body = {
        "model": target.model_id,
        "messages": [_message(message, kind) for message in turn.conversation.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        kind.max_tokens_field: turn.max_tokens or MAX_ANSWER_TOKENS,
        **kind.always,
        **{name: value for name, value in _parameters(turn) if name in kind.fields},
    }
    for quirk in kind.quirks:
        QUIRKS[quirk](body, signatures)
    return {name: value for name, value in body.items() if name not in without}


def unsupported(kind: Kind, turn: TurnRequest) -> tuple[str, ...]:
    """Parameters of the turn that would change the answer and that the kind does not know."""
    always = {"temperature", "top_p"}
    asked = {name for name, _ in _parameters(turn) if name not in always}
    asked |= {name for name in always if getattr(turn.sampling, name) != getattr(_NEUTRAL, name)}
    return tuple(sorted(asked - kind.fields))


def is_in_tool_loop(turn: TurnRequest) -> bool:
    """Whether the model is in the middle of its work: what comes last is a tool's result."""
    return turn.conversation.messages[-1].role is Role.TOOL


def _parameters(turn: TurnRequest) -> Iterator[tuple[str, Any]]:
    """All but the length. Temperature and top_p always: providers' own defaults differ."""
    sampling = turn.sampling
    yield "temperature", sampling.temperature
    yield "top_p", sampling.top_p
    for name in ("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"):
        if getattr(sampling, name) != getattr(_NEUTRAL, name):
            yield name, getattr(sampling, name)
    if sampling.logit_bias:
        yield "logit_bias", {str(id): bias for id, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        yield "seed", sampling.seed
    if turn.choices > 1:
        yield "n", turn.choices
    if turn.stop:
        yield "stop", list(turn.stop)
    if turn.logprobs is not None:
        yield "logprobs", True
        yield "top_logprobs", turn.logprobs
    if turn.conversation.tools:
        yield "tools", [_tool(tool) for tool in turn.conversation.tools]
    # Medium is what all of them do by themselves, and some models do not know the parameter.
    if turn.conversation.effort is not Effort.MEDIUM:
        yield "reasoning_effort", turn.conversation.effort.value


def _message(message: Message, kind: Kind) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.role is Role.TOOL:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        body["content"] = message.content or None
        body["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.reasoning and kind.history_reasoning:
        body[kind.history_reasoning] = message.reasoning
    return body


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}
