"""Chunks and completions as the official client reads them."""

import json
from typing import Any

import pytest
from msgspec.structs import replace
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from verger.api.answer import Delta, Outcome, Piece, Served, TokenLogprob, ToolCallDelta, Usage
from verger.api.chat_response import AnswerHead, ChatChunkEncoder, encode_completion
from verger.formats.harmony.events import Finish

HEAD = AnswerHead("chatcmpl-1", 1_700_000_000, "m", "fp_1")
USAGE = Usage(prompt_tokens=10, completion_tokens=7, cached_tokens=4, reasoning_tokens=3)
SERVED = Served("local", "waits", 1_234)
LOGPROB = TokenLogprob("so", [115, 111], -0.5, [])
OPENING = ToolCallDelta(0, '{"a', id="call_1", name="f")
CALLS = (OPENING, ToolCallDelta(0, '":1}'), ToolCallDelta(1, "{}", id="call_2", name="g"))


def chunk(encoded: bytes) -> dict[str, Any]:
    """The chunk as JSON, after the official client's own check of its types."""
    ChatCompletionChunk.model_validate_json(encoded, strict=True)
    decoded: dict[str, Any] = json.loads(encoded)
    return decoded


def completion(*pieces: Delta | Outcome) -> dict[str, Any]:
    encoded = encode_completion(HEAD, [(0, piece) for piece in pieces], SERVED)
    ChatCompletion.model_validate_json(encoded, strict=True)
    decoded: dict[str, Any] = json.loads(encoded)
    return decoded


def test_every_chunk_repeats_the_head() -> None:
    encoder = ChatChunkEncoder(HEAD, include_usage=True)
    chunks = [
        encoder.first(0),
        encoder.heartbeat(),
        encoder.delta(0, Delta(content="x")),
        encoder.finish(0, Finish.STOP),
        encoder.usage(USAGE, SERVED),
    ]
    for encoded in chunks:
        head = {key: chunk(encoded)[key] for key in ("id", "created", "model", "object")}
        assert head == {
            "id": "chatcmpl-1",
            "created": 1_700_000_000,
            "model": "m",
            "object": "chat.completion.chunk",
        }


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (Delta(content="x"), {"content": "x"}),
        (Delta(reasoning="x"), {"reasoning": "x"}),
        (Delta(reasoning="x", content="y"), {"reasoning": "x", "content": "y"}),
        (
            Delta(tool_calls=(OPENING,)),
            {
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"a'},
                    }
                ]
            },
        ),
        (
            Delta(tool_calls=CALLS[1:2]),
            {"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]},
        ),
    ],
)
def test_a_chunk_carries_only_what_was_added(delta: Delta, expected: dict[str, Any]) -> None:
    (choice,) = chunk(ChatChunkEncoder(HEAD, include_usage=False).delta(0, delta))["choices"]

    assert choice == {"index": 0, "delta": expected, "logprobs": None, "finish_reason": None}


def test_usage_is_null_in_all_chunks_but_the_last() -> None:
    asked = ChatChunkEncoder(HEAD, include_usage=True)
    last = chunk(asked.usage(USAGE, SERVED))

    assert chunk(asked.first(0))["usage"] is None
    assert "usage" not in chunk(ChatChunkEncoder(HEAD, include_usage=False).first(0))
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "served_by": "local",
        "reason": "waits",
        "queue_ms": 1_234,
    }


def test_the_last_chunk_says_who_served_it_and_what_it_cost() -> None:
    asked = ChatChunkEncoder(HEAD, include_usage=True)
    last = chunk(asked.usage(replace(USAGE, cost_usd=0.5), SERVED))
    assert last["usage"]["served_by"] == SERVED.served_by
    assert last["usage"]["reason"] == SERVED.reason
    assert last["usage"]["queue_ms"] == SERVED.queue_ms
    assert last["usage"]["cost_usd"] == 0.5
    assert chunk(asked.first(0))["usage"] is None


def test_a_heartbeat_is_of_a_choice_that_has_not_finished() -> None:
    encoder = ChatChunkEncoder(HEAD, include_usage=False)
    encoder.first(0)
    encoder.first(1)
    assert chunk(encoder.heartbeat())["choices"][0]["index"] == 0
    encoder.finish(0, Finish.STOP)
    assert chunk(encoder.heartbeat())["choices"][0]["index"] == 1


def test_a_completion_is_the_sum_of_its_deltas() -> None:
    (choice,) = completion(
        Delta(reasoning="why "),
        Delta(reasoning="so", content="be"),
        Delta(content="cause", logprobs=(LOGPROB,)),
        Outcome(Finish.LENGTH, USAGE),
    )["choices"]

    assert choice["message"] == {
        "role": "assistant",
        "content": "because",
        "reasoning": "why so",
        "refusal": None,
    }
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["content"][0]["token"] == "so"


def test_calls_are_put_together_by_index() -> None:
    (choice,) = completion(Delta(tool_calls=CALLS), Outcome(Finish.TOOL_CALLS, USAGE))["choices"]

    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_an_empty_answer_is_an_empty_string() -> None:
    (choice,) = completion(Outcome(Finish.STOP, USAGE))["choices"]

    assert choice["message"] == {"role": "assistant", "content": "", "refusal": None}


def test_choices_stand_in_order_and_the_prompt_counts_once() -> None:
    pieces: list[Piece] = [
        (1, Delta(content="one")),
        (0, Delta(content="zero")),
        (1, Outcome(Finish.STOP, USAGE)),
        (0, Outcome(Finish.LENGTH, USAGE)),
    ]
    answer = json.loads(encode_completion(HEAD, pieces, SERVED))

    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["zero", "one"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "stop"]
    assert answer["usage"]["prompt_tokens"] == USAGE.prompt_tokens
    assert answer["usage"]["completion_tokens"] == 2 * USAGE.completion_tokens
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == USAGE.cached_tokens
