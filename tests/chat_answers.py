"""Whether two chat answers say the same: for tests that compare a stream with the answer in one
piece, or one run with another."""

from collections.abc import Sequence
from typing import Any

from verger.bench.chat_rules import Json


def same_answer(one: Json, other: Json) -> bool:
    """Whether two answers differ only in what is new each time."""
    return _comparable(one) == _comparable(other)


def same_usage(one: Json, other: Json) -> bool:
    """Whether two usages differ only in how much was cached, nearly all of it the second time, and
    in how long they waited and why."""
    new = {"prompt_tokens_details": None, "queue_ms": None, "reason": None}
    return {**one, **new} == {**other, **new}


def _comparable(answer: Json) -> Sequence[Any]:
    choices = [
        {**choice, "message": {**choice["message"], "tool_calls": _without_ids(choice["message"])}}
        for choice in answer["choices"]
    ]
    return [answer["model"], answer["system_fingerprint"], choices]


def _without_ids(message: Json) -> list[Json]:
    return [{**call, "id": None} for call in message.get("tool_calls", [])]
