"""Chat completions: request bytes → ChatRequest, or an error that names the field at fault.

Called by the chat endpoint. Must not know HTTP, the served models or token ids beyond their count.
"""

from collections.abc import Sequence
from typing import Any, assert_never

import msgspec
from msgspec import Struct

from verger.api import chat_body as wire
from verger.api.json_body import decode_object, to_struct
from verger.api.turn_request import TurnRequest
from verger.errors import InvalidRequest, UnsupportedParameter
from verger.formats.conversation import Conversation, Effort, Message, Role, Tool, ToolCall
from verger.messages import Sampling

_EFFORTS = {
    None: Effort.MEDIUM,
    "none": Effort.LOW,
    "minimal": Effort.LOW,
    "low": Effort.LOW,
    "medium": Effort.MEDIUM,
    "high": Effort.HIGH,
    "xhigh": Effort.HIGH,
}
_SAMPLING_FIELDS = wire.HONOURED & frozenset(Sampling.__struct_fields__)


class ChatRequest(Struct, frozen=True):
    """A request in which every field is known to make sense. `model` may be an alias."""

    model: str
    turn: TurnRequest
    stream: bool = False
    include_usage: bool = False
    unknown_parameters: tuple[str, ...] = ()


def parse_chat_request(
    body: bytes, defaults: Sampling, vocabulary_size: int, max_choices: int = wire.MAX_CHOICES
) -> ChatRequest:
    """Parse a body; `defaults` fill the sampling parameters that it does not name."""
    decoded = decode_object(body)
    _refuse_unimplemented(decoded)
    parsed = to_struct(decoded, wire.ChatBody)
    options = parsed.stream_options or wire.StreamOptions()
    known = wire.HONOURED | wire.HARMLESS | wire.LIMITED.keys()
    return ChatRequest(
        model=parsed.model,
        turn=TurnRequest(
            conversation=_conversation(parsed),
            sampling=_sampling(parsed, defaults, vocabulary_size),
            choices=_choices(parsed, max_choices),
            max_tokens=_max_tokens(parsed),
            stop=_stop(parsed.stop),
            logprobs=_logprobs(parsed),
        ),
        stream=bool(parsed.stream),
        include_usage=bool(options.include_usage),
        unknown_parameters=tuple(sorted(decoded.keys() - known)),
    )


def _refuse_unimplemented(decoded: dict[str, Any]) -> None:
    for name, implemented in wire.LIMITED.items():
        value = decoded.get(name)
        if value is None or any(type(value) is type(v) and value == v for v in implemented):
            continue
        choices = " or ".join(msgspec.json.encode(v).decode() for v in implemented)
        hint = f"; use {choices}, or leave it out" if choices else "; leave it out"
        raise UnsupportedParameter(
            f"This server does not support this value of '{name}' yet{hint}.", param=name
        )


def _conversation(parsed: wire.ChatBody) -> Conversation:
    tools = _tools(parsed.tools or [])
    return Conversation(
        messages=_messages(parsed.messages),
        # A model that is not told of the tools cannot call them.
        tools=() if parsed.tool_choice == "none" else tools,
        effort=_EFFORTS[parsed.reasoning_effort],
    )


def _tools(declared: Sequence[wire.ChatTool]) -> tuple[Tool, ...]:
    names: set[str] = set()
    for index, tool in enumerate(declared):
        if tool.function.name in names:
            raise InvalidRequest(
                f"Two tools are named '{tool.function.name}'.", param=f"tools.{index}.function.name"
            )
        names.add(tool.function.name)
    return tuple(
        Tool(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters=tool.function.parameters,
            strict=bool(tool.function.strict),
        )
        for tool in declared
    )


def _messages(sent: Sequence[wire.ChatMessage]) -> tuple[Message, ...]:
    call_ids: set[str] = set()
    last_call_ids: dict[str, str] = {}
    """By the name of what was called."""
    messages: list[Message] = []
    for index, message in enumerate(sent):
        param = f"messages.{index}"
        match message:
            case wire.SystemMessage(content=content):
                messages.append(Message(Role.SYSTEM, _text(content, param)))
            case wire.DeveloperMessage(content=content):
                messages.append(Message(Role.DEVELOPER, _text(content, param)))
            case wire.UserMessage(content=content):
                messages.append(Message(Role.USER, _text(content, param)))
            case wire.ToolMessage():
                messages.append(_tool_result(message, call_ids, param))
            case wire.FunctionMessage():
                messages.append(_function_result(message, last_call_ids, param))
            case wire.AssistantMessage():
                messages.append(_assistant(message, param))
                call_ids.update(call.id for call in messages[-1].tool_calls)
                last_call_ids.update((call.name, call.id) for call in messages[-1].tool_calls)
            case _:
                assert_never(message)
    return tuple(messages)


def _tool_result(message: wire.ToolMessage, call_ids: set[str], param: str) -> Message:
    if message.tool_call_id not in call_ids:
        raise InvalidRequest(
            f"No preceding assistant message has a tool call with the id '{message.tool_call_id}'.",
            param=f"{param}.tool_call_id",
        )
    content = _text(message.content, param)
    return Message(Role.TOOL, content, tool_call_id=message.tool_call_id)


def _function_result(
    message: wire.FunctionMessage, last_call_ids: dict[str, str], param: str
) -> Message:
    call_id = last_call_ids.get(message.name)
    if call_id is None:
        raise InvalidRequest(
            f"No preceding assistant message calls '{message.name}'.", param=f"{param}.name"
        )
    content = "" if message.content is None else _text(message.content, param)
    return Message(Role.TOOL, content, tool_call_id=call_id)


def _assistant(message: wire.AssistantMessage, param: str) -> Message:
    content = "" if message.content is None else _text(message.content, param)
    return Message(
        Role.ASSISTANT,
        content or message.refusal or "",
        reasoning=message.reasoning or message.reasoning_content or message.thinking or "",
        tool_calls=_calls(message, param),
    )


def _calls(message: wire.AssistantMessage, param: str) -> tuple[ToolCall, ...]:
    calls = [
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    ]
    if legacy := message.function_call:
        if calls:
            raise InvalidRequest(
                "A message has 'tool_calls' or a 'function_call', not both.",
                param=f"{param}.function_call",
            )
        # Its place in the conversation is as good as the id that it never had.
        calls.append(ToolCall(f"{param}.function_call", legacy.name, legacy.arguments))
    return tuple(calls)


def _text(content: wire.Content, param: str) -> str:
    """Text parts are joined by line breaks, as vLLM and llama.cpp do."""
    if isinstance(content, str):
        return content
    return "\n".join(
        _part_text(part, f"{param}.content.{index}") for index, part in enumerate(content)
    )


def _part_text(part: wire.Part, param: str) -> str:
    match part:
        case wire.TextPart(text=text) | wire.RefusalPart(refusal=text):
            return text
        case wire.ImagePart() | wire.AudioPart() | wire.FilePart():
            raise UnsupportedParameter(
                "The model reads text only; remove images, audio and files.", param=param
            )
        case _:
            assert_never(part)


def _sampling(parsed: wire.ChatBody, defaults: Sampling, vocabulary_size: int) -> Sampling:
    named = {
        name: value
        for name, value in msgspec.structs.asdict(parsed).items()
        if name in _SAMPLING_FIELDS and value is not None
    }
    for token_id in named.get("logit_bias", ()):
        if not 0 <= token_id < vocabulary_size:
            raise InvalidRequest(
                f"Token id {token_id} is outside the vocabulary of {vocabulary_size} tokens.",
                param="logit_bias",
            )
    if named.get("top_k") == -1:
        named["top_k"] = 0
    return msgspec.structs.replace(defaults, **named)


def _choices(parsed: wire.ChatBody, max_choices: int) -> int:
    choices = 1 if parsed.n is None else parsed.n
    if choices > max_choices:
        raise InvalidRequest(
            f"'n' is {choices}, but this server generates only {max_choices} answers at once.",
            param="n",
        )
    return choices


def _max_tokens(parsed: wire.ChatBody) -> int | None:
    old, new = parsed.max_tokens, parsed.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ; send only one of them.",
            param="max_tokens",
        )
    return new if new is not None else old


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    return tuple(stop or ())


def _logprobs(parsed: wire.ChatBody) -> int | None:
    if parsed.logprobs:
        return parsed.top_logprobs or 0
    if parsed.top_logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    return None
