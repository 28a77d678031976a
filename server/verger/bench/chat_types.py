"""The types of Verger's chat answers, as strict as a typed client: nothing missing, nothing more.

Called by `soak_check.py`. Written from OpenAI's API reference ("The chat completion object" and
"… chunk object") and the README's own fields, not from the server's encoder, so that both can be
wrong only apart. Pure; must not know what was asked.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from verger.bench.stream_rules import Shape, Shapes

Count = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]
Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True):
    """A field without a default must be there, also where it may be null."""


class _TopLogprob(_Strict, frozen=True):
    token: str
    bytes: list[Annotated[int, Meta(ge=0, le=255)]]
    logprob: float


class _Logprob(_Strict, frozen=True):
    token: str
    bytes: list[Annotated[int, Meta(ge=0, le=255)]]
    logprob: float
    top_logprobs: list[_TopLogprob]


class _Logprobs(_Strict, frozen=True):
    content: list[_Logprob]
    refusal: None


class _PromptDetails(_Strict, frozen=True):
    cached_tokens: Count


class _CompletionDetails(_Strict, frozen=True):
    reasoning_tokens: Count


class _Usage(_Strict, frozen=True, kw_only=True):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails
    served_by: Text
    reason: Text
    queue_ms: Count
    cost_usd: float | UnsetType = UNSET


class _Function(_Strict, frozen=True):
    name: Text
    arguments: str


class _Call(_Strict, frozen=True):
    id: Text
    type: Literal["function"]
    function: _Function


class _Message(_Strict, frozen=True, kw_only=True):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: Text | UnsetType = UNSET
    tool_calls: Annotated[list[_Call], Meta(min_length=1)] | UnsetType = UNSET


class _Choice(_Strict, frozen=True):
    index: Count
    message: _Message
    logprobs: _Logprobs | None
    finish_reason: Finish


class _Completion(_Strict, frozen=True):
    id: Text
    object: Literal["chat.completion"]
    created: Count
    model: Text
    system_fingerprint: Text
    choices: list[_Choice]
    usage: _Usage


class _FunctionPiece(_Strict, frozen=True):
    name: Text | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class _CallPiece(_Strict, frozen=True, kw_only=True):
    index: Count
    id: Text | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: _FunctionPiece


class _Delta(_Strict, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[_CallPiece] | UnsetType = UNSET


class _ChunkChoice(_Strict, frozen=True):
    index: Count
    delta: _Delta
    logprobs: _Logprobs | None
    finish_reason: Finish | None


class _Chunk(_Strict, frozen=True, kw_only=True):
    id: Text
    object: Literal["chat.completion.chunk"]
    created: Count
    model: Text
    system_fingerprint: Text
    choices: list[_ChunkChoice]
    usage: _Usage | None | UnsetType = UNSET


class _ErrorFields(_Strict, frozen=True, kw_only=True):
    message: Text
    type: Text
    param: str | None
    code: Text
    partial: bool | UnsetType = UNSET


class _Error(_Strict, frozen=True):
    error: _ErrorFields


def _shape(kind: type[Struct]) -> Shape:
    def faults(body: Any) -> list[str]:
        try:
            msgspec.convert(body, kind)
        except msgspec.ValidationError as error:
            return [f"types: {error}"]
        return []

    return faults


completion_shape = _shape(_Completion)
error_shape = _shape(_Error)
SHAPES = Shapes(chunk=_shape(_Chunk), error=error_shape)
