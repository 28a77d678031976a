"""The validator itself: what is right passes, and each thing that goes wrong is noticed."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.chat_answers import same_answer
from tests.validator import CHAT, Exchange, faults
from verger.bench.stream_rules import assembled

Json = dict[str, Any]
Mutation = Callable[[Any], object]

REQUEST: Json = {"model": "m", "messages": [], "logprobs": True, "top_logprobs": 1, "tools": [{}]}
STREAM_REQUEST = {**REQUEST, "stream": True, "stream_options": {"include_usage": True}}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m", "system_fingerprint": "fp"}
TOKENS = [
    {
        "token": token,
        "bytes": list(token.encode()),
        "logprob": -0.5,
        "top_logprobs": [{"token": "x", "bytes": [120], "logprob": -0.5}],
    }
    for token in ("he", "llo")
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 7,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
    "served_by": "local",
    "reason": "waits",
    "queue_ms": 5,
}
MESSAGE = {
    "role": "assistant",
    "content": "hello",
    "refusal": None,
    "reasoning": "hmm",
    "tool_calls": [CALL],
}
COMPLETION: Json = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": MESSAGE,
            "logprobs": {"content": TOKENS, "refusal": None},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
}


def chunk(delta: Json, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": logprobs and {"content": [logprobs], "refusal": None},
        "finish_reason": finish_reason,
    }
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], "usage": None}


CHUNKS: list[Json] = [
    chunk({"role": "assistant", "content": ""}),
    chunk({}),
    chunk({"reasoning": "hmm"}),
    chunk({"content": "he"}, TOKENS[0]),
    chunk({"content": "llo"}, TOKENS[1]),
    chunk(
        {
            "tool_calls": [
                {"index": 0, **CALL, "function": {"name": "f", "arguments": '{"a'}},
            ]
        }
    ),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]}),
    chunk({}, finish_reason="tool_calls"),
    {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE},
]
ROLE, _, REASONING, CONTENT, CONTENT_2, OPENING, ARGUMENTS, FINISH, LAST = range(len(CHUNKS))


def reply(
    body: bytes, request: Json = REQUEST, *, status: int = 200, kind: str = "application/json"
) -> Exchange:
    headers = {"content-type": kind, "x-request-id": "req_1"}
    return Exchange(CHAT, json.dumps(request).encode(), status, headers, body, True)


def streamed(chunks: list[Json], end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


def stream_reply(
    body: str, request: Json = STREAM_REQUEST, *, is_complete: bool = True
) -> Exchange:
    headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_1"}
    sent = json.dumps(request).encode()
    return Exchange(CHAT, sent, 200, headers, body.encode(), is_complete)


def test_a_valid_completion_and_a_valid_stream_pass() -> None:
    assert faults(reply(json.dumps(COMPLETION).encode())) == []
    assert faults(stream_reply(": comment\n\n" + streamed(CHUNKS))) == []


def test_a_stream_adds_up_to_the_completion() -> None:
    whole = assembled(STREAM_REQUEST, streamed(CHUNKS))

    assert same_answer(whole, COMPLETION)
    assert faults(reply(json.dumps(whole).encode())) == []


def test_a_lost_piece_shows_in_the_sum_only() -> None:
    lossy = streamed([*CHUNKS[:CONTENT_2], *CHUNKS[OPENING:]])

    assert faults(stream_reply(lossy)) == []
    assert not same_answer(assembled(STREAM_REQUEST, lossy), COMPLETION)


COMPLETION_MUTATIONS: list[tuple[Mutation, str]] = [
    (lambda c: c.pop("id"), "id: Field required"),
    (lambda c: c.update(created="1"), "created: "),
    (lambda c: c.update(object="completion"), "object: "),
    (lambda c: c.update(extra=1), "extra: extra field"),
    (lambda c: c.pop("usage"), "usage: missing"),
    (lambda c: c["usage"].update(total_tokens=16), "not the sum"),
    (lambda c: c["usage"].update(queue_ms=-1), "who answered, and why"),
    (lambda c: c["usage"].update(reason=""), "who answered, and why"),
    (lambda c: c["usage"].update(seconds=1), "usage.seconds: extra field"),
    (lambda c: c["usage"]["prompt_tokens_details"].update(cached_tokens=11), "cached than sent"),
    (lambda c: c["usage"]["completion_tokens_details"].update(reasoning_tokens=8), "of reasoning"),
    (lambda c: c["choices"][0].update(index=1), "choices: "),
    (lambda c: c["choices"].append(c["choices"][0]), "choices: "),
    (lambda c: c["choices"][0].update(finish_reason="stop"), "stop with a call"),
    (lambda c: c["choices"][0].update(finish_reason="eos"), "finish_reason: "),
    (lambda c: c["choices"][0].pop("logprobs"), "logprobs: missing field"),
    (
        lambda c: c["choices"][0].update(logprobs=None, finish_reason="stop"),
        "asked for and not there",
    ),
    (lambda c: c["choices"][0]["message"].pop("refusal"), "message.refusal: missing field"),
    (lambda c: c["choices"][0]["message"].update(role="user"), "message.role: "),
    (lambda c: c["choices"][0]["message"].update(thinking=""), "message.thinking: extra field"),
    (lambda c: c["choices"][0]["message"].pop("tool_calls"), "tool_calls without a call"),
    (lambda c: c["choices"][0]["message"]["tool_calls"].append(CALL), "repeated id"),
    (lambda c: c["choices"][0]["message"]["tool_calls"][0].pop("type"), "tool_calls.0"),
    (lambda c: c["choices"][0]["message"]["tool_calls"][0].update(index=0), "extra field"),
    (lambda c: c["choices"][0]["logprobs"]["content"].pop(), "the tokens spell 'he'"),
    (lambda c: c["choices"][0]["logprobs"]["content"][0].update(logprob=0.1), "logprob: 0.1"),
    (lambda c: c["choices"][0]["logprobs"]["content"][0].update(token="x"), "its bytes spell"),
    (lambda c: c["choices"][0]["logprobs"]["content"][0].pop("bytes"), "bytes: missing field"),
    (
        lambda c: c["choices"][0]["logprobs"]["content"][0].update(
            top_logprobs=TOKENS[0]["top_logprobs"] * 2
        ),
        "more than were asked for",
    ),
    (
        lambda c: c["choices"][0]["logprobs"]["content"][0].update(
            top_logprobs=[{"token": "x", "bytes": [120], "logprob": p} for p in (-2.0, -1.0)]
        ),
        "not the most likely first",
    ),
]


@pytest.mark.parametrize(("mutate", "fault"), COMPLETION_MUTATIONS)
def test_a_mutated_completion_is_noticed(mutate: Mutation, fault: str) -> None:
    mutated = copy.deepcopy(COMPLETION)
    mutate(mutated)

    assert fault in "\n".join(faults(reply(json.dumps(mutated).encode())))


def test_logprobs_may_cover_the_final_message_only() -> None:
    preamble = copy.deepcopy(COMPLETION)
    preamble["choices"][0]["message"]["content"] = "Let me see.\n\nhello"
    unasked = copy.deepcopy(COMPLETION)
    unasked["choices"][0]["message"]["content"] = "so\n\nhello!"

    assert faults(reply(json.dumps(preamble).encode())) == []
    assert "the tokens spell" in "\n".join(faults(reply(json.dumps(unasked).encode())))


def test_a_stop_string_may_cut_the_last_token() -> None:
    cut = copy.deepcopy(COMPLETION)
    cut["choices"][0]["message"]["content"] = "hel"

    assert faults(reply(json.dumps(cut).encode(), {**REQUEST, "stop": "lo"})) == []
    assert "the tokens spell" in "\n".join(faults(reply(json.dumps(cut).encode())))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"n": 2}, "choices: "),
        ({"max_tokens": 6}, "more tokens than max_tokens"),
        ({"stop": "ell"}, "contains the stop string"),
        ({"stop": ["x", "o"]}, "contains the stop string"),
        ({"logprobs": False}, "though nobody asked"),
        ({"top_logprobs": 0}, "more than were asked for"),
        ({"tools": []}, "no tools were declared"),
        ({"stream": True}, "answered in one piece"),
    ],
)
def test_an_answer_to_another_request_is_noticed(fields: Json, fault: str) -> None:
    body = json.dumps(COMPLETION).encode()

    assert fault in "\n".join(faults(reply(body, {**REQUEST, **fields})))


def delta_of(chunks: list[Json], position: int) -> Json:
    delta: Json = chunks[position]["choices"][0]["delta"]
    return delta


STREAM_MUTATIONS: list[tuple[Mutation, str]] = [
    (lambda c: c[CONTENT].update(id="chatcmpl-2"), "has changed"),
    (lambda c: c[CONTENT].update(created=2), "has changed"),
    (lambda c: c[CONTENT].update(model="n"), "has changed"),
    (lambda c: c[CONTENT].pop("system_fingerprint"), "has changed"),
    (lambda c: c[CONTENT].pop("created"), "created: Field required"),
    (lambda c: c[CONTENT].update(queue=1), "queue: extra field"),
    (lambda c: c[CONTENT]["choices"][0].pop("finish_reason"), "finish_reason: missing field"),
    (lambda c: c[CONTENT].pop("usage"), "exactly when it is asked for"),
    (lambda c: c[CONTENT].update(usage=USAGE), "in a chunk of its own"),
    (lambda c: c.pop(LAST), "usage: asked for and not there"),
    (lambda c: c.insert(FINISH, c.pop(LAST)), "after the usage"),
    (lambda c: c.append(c[LAST]), "after the usage"),
    (lambda c: c.pop(ROLE), "role: "),
    (lambda c: c.insert(1, c[ROLE]), "role: "),
    (lambda c: c.insert(1, c.pop(ROLE)), "role: "),
    (lambda c: delta_of(c, REASONING).update(reasoning_content="hmm"), "extra field"),
    (lambda c: delta_of(c, REASONING).update(content=""), "an empty piece"),
    (lambda c: delta_of(c, REASONING).update(tool_calls=[]), "an empty piece"),
    (lambda c: c.pop(FINISH), "finish_reason: missing"),
    (lambda c: c.insert(CONTENT, c.pop(FINISH)), "after its finish_reason"),
    (lambda c: c.insert(FINISH, c[FINISH]), "after its finish_reason"),
    (lambda c: c[FINISH]["choices"][0].update(finish_reason="stop"), "stop with a call"),
    (lambda c: c[CONTENT]["choices"][0].update(index=1), "role: "),
    (lambda c: c[CONTENT]["choices"][0].update(logprobs=None), "the tokens spell 'llo'"),
    (lambda c: delta_of(c, CONTENT).update(content="ho"), "the content is 'hollo'"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].pop("id"), "has id, type and name"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].pop("type"), "has id, type and name"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0]["function"].pop("name"), "id, type and name"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].pop("index"), "index: Field required"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].update(index=1), "count from 0"),
    (lambda c: delta_of(c, ARGUMENTS)["tool_calls"][0].update(id="call_1"), "and nothing else"),
    (lambda c: delta_of(c, ARGUMENTS)["tool_calls"][0].update(index=1), "has id, type and name"),
    (lambda c: delta_of(c, ARGUMENTS)["tool_calls"][0].update(index=2), "count from 0"),
]


@pytest.mark.parametrize(("mutate", "fault"), STREAM_MUTATIONS)
def test_a_mutated_stream_is_noticed(mutate: Mutation, fault: str) -> None:
    mutated = copy.deepcopy(CHUNKS)
    mutate(mutated)

    assert fault in "\n".join(faults(stream_reply(streamed(mutated))))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (streamed(CHUNKS, end=""), "a clean end without [DONE]"),
        ("", "a clean end without [DONE]"),
        (streamed(CHUNKS) + "data: {}\n\n", "after [DONE]"),
        (streamed(CHUNKS[:1], end="data: {\n\n"), "not JSON"),
        (streamed(CHUNKS) + streamed(CHUNKS), "after [DONE]"),
        (streamed(CHUNKS, end="data: [DONE]\n"), "in the middle of an event"),
        (streamed(CHUNKS, end="event: end\ndata: [DONE]\n\n"), "not one line of data"),
    ],
)
def test_a_stream_that_ends_or_is_framed_wrongly_is_noticed(body: str, fault: str) -> None:
    assert fault in "\n".join(faults(stream_reply(body)))


def test_usage_that_nobody_asked_for_is_noticed() -> None:
    request = {**REQUEST, "stream": True}

    assert "exactly when it is asked for" in "\n".join(
        faults(stream_reply(streamed(CHUNKS), request))
    )


def test_a_broken_stream_is_valid_if_it_is_not_ended_cleanly() -> None:
    error = {"error": {"message": "m", "type": "server_error", "param": None, "code": "c"}}
    broken = streamed([*CHUNKS[:CONTENT], error], end="")

    assert faults(stream_reply(broken, is_complete=False)) == []
    assert faults(stream_reply(streamed(CHUNKS[:CONTENT], end="da"), is_complete=False)) == []
    assert "a clean end" in "\n".join(faults(stream_reply(broken)))
    going_on = streamed([error, *CHUNKS], end="")
    assert "after an error" in "\n".join(faults(stream_reply(going_on, is_complete=False)))


ERROR: Json = {"message": "m", "type": "invalid_request_error", "param": None, "code": "c"}


@pytest.mark.parametrize(
    ("body", "status", "fault"),
    [
        (
            {"error": {key: ERROR[key] for key in ("message", "type", "code")}},
            400,
            "param: missing",
        ),
        ({"error": {**ERROR, "code": None}}, 400, "no code"),
        ({"error": {**ERROR, "status": 400}}, 400, "status: extra field"),
        ({"error": "m"}, 400, "valid"),
        ({"detail": "m"}, 400, "nothing but an error"),
        ({"error": ERROR, "detail": "m"}, 400, "nothing but an error"),
        ({"error": ERROR}, 503, "retry-after: missing"),
    ],
)
def test_a_wrong_refusal_is_noticed(body: Json, status: int, fault: str) -> None:
    assert fault in "\n".join(faults(reply(json.dumps(body).encode(), status=status)))


def test_a_refusal_is_json_and_has_an_id() -> None:
    assert faults(reply(json.dumps({"error": ERROR}).encode(), status=400)) == []
    assert "is not JSON" in "\n".join(faults(reply(b"oops", status=500, kind="text/plain")))
    assert "not JSON" in "\n".join(faults(reply(b"oops", status=500)))
    assert faults(Exchange(CHAT, b"", 400, {}, b"", False)) == ["x-request-id: missing"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/models", {"object": "list", "data": []}, []),
        ("/v1/models", {"object": "list", "data": [], "more": 1}, ["models: not a list object"]),
        (
            "/v1/models/m",
            {"id": "m", "object": "model", "created": 1, "owned_by": "v", "context_length": 1},
            [],
        ),
        (
            "/v1/models/m",
            {"id": "m", "object": "model", "created": 1, "owned_by": "v", "aliases": []},
            ["aliases: extra field of Model"],
        ),
    ],
)
def test_models_are_checked(path: str, body: Json, expected: list[str]) -> None:
    headers = {"content-type": "application/json", "x-request-id": "req_1"}
    exchange = Exchange(path, b"", 200, headers, json.dumps(body).encode(), True)

    assert faults(exchange) == expected


@pytest.mark.parametrize(
    ("kind", "policy", "expected"),
    [
        ("text/html; charset=utf-8", "default-src 'none'; style-src 'self'", []),
        ("text/html", "", ["content-security-policy: missing, or allows something by default"]),
        ("text/plain", "default-src 'none';", ["content-type: 'text/plain' is not HTML"]),
    ],
)
def test_pages_are_checked(kind: str, policy: str, expected: list[str]) -> None:
    headers = {"content-type": kind, "x-request-id": "r", "content-security-policy": policy}
    assert faults(Exchange("/connect", b"", 200, headers, b"<p>", True)) == expected
