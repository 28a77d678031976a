"""The lists of parameters against the official client's own request types: what it can say."""

from typing import Any, get_args, get_type_hints

from openai.types.chat import (
    ChatCompletionContentPartParam,
    ChatCompletionMessageParam,
    completion_create_params,
)

from verger.api import chat_body

OTHERS = {"top_k", "min_p", "repetition_penalty"}
"""Not OpenAI's: as vLLM and llama.cpp have them."""
LISTS = (chat_body.HONOURED, chat_body.HARMLESS, frozenset(chat_body.LIMITED))


def test_every_parameter_of_the_api_stands_in_exactly_one_list() -> None:
    """A new field of the client fails here, until it is decided what becomes of it."""
    theirs = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)
    theirs |= get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming)
    ours = [name for names in LISTS for name in names]

    assert sorted(ours) == sorted(theirs.keys() | OTHERS)


def test_every_role_and_every_kind_of_part_is_known() -> None:
    assert _tags(ChatCompletionMessageParam, "role") == _our_tags(chat_body.ChatMessage)
    parts = _tags(ChatCompletionContentPartParam, "type") | {"refusal"}
    assert parts == _our_tags(chat_body.Part)


def _tags(union: Any, key: str) -> set[str]:
    """The values of the key by which a union of TypedDicts is told apart."""
    return {
        value
        for member in get_args(union)
        for required in get_args(get_type_hints(member)[key])
        for value in (get_args(required) or (required,))
    }


def _our_tags(union: Any) -> set[Any]:
    return {struct.__struct_config__.tag for struct in get_args(union)}
