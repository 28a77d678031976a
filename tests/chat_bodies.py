"""Chat request bodies, good and bad: read by the codec's tests and sent to a live gateway."""

from typing import Any

import msgspec

from verger.api import chat_body
from verger.messages import MAX_TOP_LOGPROBS

VOCABULARY_SIZE = 265
"""Of tests.fakes.byte_tokenizer."""
USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "42"}
LEGACY_CALL = {"name": "f", "arguments": "{}"}
LEGACY_CALLING: dict[str, Any] = {"role": "assistant", "function_call": LEGACY_CALL}
LEGACY_RESULT = {"role": "function", "name": "f", "content": "42"}
TOOL = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "http://example.com/x.png"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [USER], **fields})


Bad = tuple[dict[str, Any], str]
"""Fields of a body, and the parameter that the refusal must name."""

UNSUPPORTED: list[Bad] = [
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tool_choice": "required", "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"verbosity": "low"}, "verbosity"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [AUDIO]}]}, "messages.0.content.0"),
]

WRONG: list[Bad] = [
    ({"model": 3}, "model"),
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [USER] * (chat_body.MAX_MESSAGES + 1)}, "messages"),
    ({"messages": ["hi"]}, "messages.0"),
    ({"messages": [{"content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0"),
    ({"messages": [USER, RESULT]}, "messages.1.tool_call_id"),
    ({"messages": [RESULT, CALLING]}, "messages.0.tool_call_id"),
    ({"messages": [CALLING, {"role": "tool", "content": "x"}]}, "messages.1.tool_call_id"),
    (
        {"messages": [{**CALLING, "tool_calls": [{**CALL, "type": "custom"}]}]},
        "messages.0.tool_calls.0.type",
    ),
    (
        {"messages": [{**CALLING, "tool_calls": [{**CALL, "function": {"name": "f"}}]}]},
        "messages.0.tool_calls.0.function.arguments",
    ),
    ({"messages": [{"role": "assistant", "reasoning": 1}]}, "messages.0.reasoning"),
    (
        {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
        "messages.0.function_call.arguments",
    ),
    ({"messages": [{**CALLING, "function_call": LEGACY_CALL}]}, "messages.0.function_call"),
    ({"messages": [LEGACY_RESULT, LEGACY_CALLING]}, "messages.0.name"),
    ({"messages": [LEGACY_CALLING, {"role": "function", "name": "f"}]}, "messages.1.content"),
    ({"n": 0}, "n"),
    ({"n": chat_body.MAX_CHOICES + 1}, "n"),
    ({"n": True}, "n"),
    ({"n": 2.0}, "n"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": -1}, "min_p"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop.1"),
    ({"stop": list("abcde")}, "stop"),
    ({"stop": "x" * (chat_body.MAX_STOP_CHARACTERS + 1)}, "stop"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": MAX_TOP_LOGPROBS + 1}, "top_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {str(VOCABULARY_SIZE): 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
    ({"tools": [TOOL] * (chat_body.MAX_TOOLS + 1)}, "tools"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": "{}"}}]},
        "tools.0.function.parameters",
    ),
    ({"tool_choice": "auto", "tools": {}}, "tools"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
]

NOT_JSON = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"model":"m"} trailing',
    body()[:-1] + b',"temperature":NaN}',
    body()[:-1] + b',"temperature":Infinity}',
    body()[:-1] + b',"temperature":1e999}',
    body()[:-1] + b',"seed":' + b"1" * 5_000 + b"}",
    body()[:-1] + b',"user":"\\ud800"}',
    body()[:-1] + b',"user":"\xff"}',
]
