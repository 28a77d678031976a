"""The validator itself: what is right passes, and each thing that goes wrong is noticed."""

import copy
import json

import pytest

from tests.chat_answers import same_answer
from tests.chat_samples import (
    CHUNKS,
    COMPLETION,
    COMPLETION_MUTATIONS,
    CONTENT,
    CONTENT_2,
    OPENING,
    REQUEST,
    STREAM_MUTATIONS,
    STREAM_REQUEST,
    Json,
    Mutation,
    streamed,
)
from tests.validator import CHAT, Exchange, faults
from verger.bench.stream_rules import assembled


def reply(
    body: bytes, request: Json = REQUEST, *, status: int = 200, kind: str = "application/json"
) -> Exchange:
    headers = {"content-type": kind, "x-request-id": "req_1"}
    return Exchange(CHAT, json.dumps(request).encode(), status, headers, body, True)


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
