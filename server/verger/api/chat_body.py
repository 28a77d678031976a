"""The chat completions request as it stands on the wire, and what becomes of each parameter.

Read by `chat_request`. Field types carry the bounds; every optional field also accepts null.
Names and meanings: OpenAI's API reference, "Create chat completion"; top_k, min_p and
repetition_penalty as vLLM and llama.cpp have them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from verger.messages import MAX_TOP_LOGPROBS

MAX_MESSAGES = 2_000
MAX_PARTS = 1_000
MAX_TOOLS = 512
MAX_TOOL_CALLS = 128
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1_024
MAX_LOGIT_BIASES = 1_024
MAX_CHOICES = 8
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",  # gpt-oss makes one call per answer, whatever is asked.
        "prediction",  # Would make the same answer come sooner.
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",  # There is one tier.
        "store",  # Nothing is stored, and the answer does not depend on it.
        "user",
    }
)
"""Accepted, and change nothing."""

LIMITED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": (),
    "functions": (),  # Deprecated for tools; their answers have a shape of their own.
    "modalities": (["text"],),
    "moderation": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    # gpt-oss was trained with a dial for its reasoning and none for the length of its answers; a
    # sentence in the prompt would be our invention, and ignoring "low" would break a promise.
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Would change the answer: only null and these values are implemented, others are refused."""

Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
FunctionName = Annotated[str, Meta(min_length=1, max_length=128)]
"""Of a call that was made, whatever its tool is called today."""
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Positive = Annotated[int, Meta(ge=1, le=INT64_MAX)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """Refused: the model reads text."""


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Refused: the model reads text."""


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """Refused: the model reads text."""


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | Annotated[list[Part], Meta(min_length=1, max_length=MAX_PARTS)]


class FunctionCall(Struct, frozen=True):
    name: FunctionName
    arguments: str


class MessageToolCall(Struct, frozen=True, tag_field="type", tag="function"):
    id: CallId
    function: FunctionCall


class SystemMessage(Struct, frozen=True, tag_field="role", tag="system"):
    content: Content


class DeveloperMessage(Struct, frozen=True, tag_field="role", tag="developer"):
    content: Content


class UserMessage(Struct, frozen=True, tag_field="role", tag="user"):
    content: Content


class ToolMessage(Struct, frozen=True, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: CallId


class FunctionMessage(Struct, frozen=True, tag_field="role", tag="function"):
    """What tool messages were before calls had ids: the result of the last call of `name`."""

    name: FunctionName
    content: Content | None


class AssistantMessage(Struct, frozen=True, tag_field="role", tag="assistant"):
    """Clients send the reasoning back under one of three names, or not at all.

    `function_call` is what `tool_calls` were before a message could hold several.
    """

    content: Content | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Meta(max_length=MAX_TOOL_CALLS)] | None = None
    function_call: FunctionCall | None = None


ChatMessage = (
    SystemMessage
    | DeveloperMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage
)


class FunctionTool(Struct, frozen=True):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(Struct, frozen=True, tag_field="type", tag="function"):
    function: FunctionTool


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class ChatBody(Struct, frozen=True):
    """Every parameter that is honoured, and `tool_choice`, which is limited."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT64_MAX)] | None = None
    min_p: Unit | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[int, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIASES)
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=INT64_MIN, le=INT64_MAX)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[ChatTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


HONOURED = frozenset(ChatBody.__struct_fields__) - LIMITED.keys()
