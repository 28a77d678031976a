"""JSON against the official SDK's typed models: wrong types, missing fields, extra fields.

Called by `validator`. The SDK itself accepts almost anything: its models allow
extra fields, and it builds them without validating. Here nothing is let through.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from openai.types import CompletionUsage, Model
from openai.types.chat import (
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.shared import ErrorObject
from pydantic import BaseModel, ValidationError

ALLOWED_EXTRA: Mapping[type[BaseModel], frozenset[str]] = {
    ChatCompletionMessage: frozenset({"reasoning"}),  # As OpenRouter and vLLM have it.
    chat_completion_chunk.ChoiceDelta: frozenset({"reasoning"}),
    # Who answered, and what a provider asks for it.
    CompletionUsage: frozenset({"served_by", "reason", "queue_ms", "cost_usd"}),
    Model: frozenset({"context_length"}),  # As OpenRouter has it.
    ErrorObject: frozenset({"partial"}),
}
"""All that may stand beside OpenAI's own fields."""

REQUIRED_NULLABLE: Mapping[type[BaseModel], frozenset[str]] = {
    chat_completion.Choice: frozenset({"logprobs"}),
    chat_completion.ChoiceLogprobs: frozenset({"content", "refusal"}),
    ChatCompletionMessage: frozenset({"content", "refusal"}),
    chat_completion_chunk.Choice: frozenset({"finish_reason"}),
    chat_completion_chunk.ChoiceLogprobs: frozenset({"content", "refusal"}),
    ChatCompletionTokenLogprob: frozenset({"bytes"}),
    TopLogprob: frozenset({"bytes"}),
    ErrorObject: frozenset({"code", "param"}),
}
"""What OpenAI's API description requires although it may be null; the SDK's types cannot say it."""


def type_faults(model: type[BaseModel], sent: Any) -> list[str]:
    """Everything that is wrong with a decoded body, one line each; nothing if it is valid."""
    try:
        built = model.model_validate(sent, strict=True)
    except ValidationError as error:
        return [f"{_dotted(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
    return list(_field_faults(built, ""))


def _field_faults(built: BaseModel, path: str) -> Iterator[str]:
    kind = type(built)
    for name in sorted((built.model_extra or {}).keys() - ALLOWED_EXTRA.get(kind, frozenset())):
        yield f"{path}{name}: extra field of {kind.__name__}"
    for name in sorted(REQUIRED_NULLABLE.get(kind, frozenset()) - built.model_fields_set):
        yield f"{path}{name}: missing field of {kind.__name__}"
    for name in kind.model_fields:
        value = getattr(built, name)
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, BaseModel):
                step = f"{name}.{index}" if isinstance(value, list) else name
                yield from _field_faults(child, f"{path}{step}.")


def _dotted(place: tuple[int | str, ...]) -> str:
    return ".".join(str(step) for step in place)
