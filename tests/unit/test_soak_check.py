"""The judge of a soak: what is right is answered, and each thing that goes wrong is seen."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.chat_samples import (
    CALL,
    CHUNKS,
    COMPLETION,
    COMPLETION_MUTATIONS,
    CONTENT,
    FINISH,
    LAST,
    REQUEST,
    STREAM_MUTATIONS,
    STREAM_REQUEST,
    TOOL,
    Json,
    Mutation,
    chunk,
    streamed,
)
from verger.bench.soak_asks import Ask, Expected
from verger.bench.soak_check import Outcome, Reply, Verdict, judge

ERROR = {"message": "m", "type": "server_error", "param": None, "code": "engine_unavailable"}
CALLED = Expected('{"a":1}', "f")


def asked(expected: Expected | None = None, **fields: Any) -> Ask:
    return Ask({**REQUEST, "max_tokens": 20, **fields}, 0, None, expected, frozenset())


STREAMED = replace(asked(), body={**STREAM_REQUEST, "max_tokens": 20})


def whole(body: Any, status: int = 200, **headers: str) -> Reply:
    kinds = {"content-type": "application/json", "x-request-id": "r", **headers}
    return Reply(status, kinds, json.dumps(body).encode(), is_complete=True)


def in_events(body: str, is_complete: bool = True, failure: str = "") -> Reply:
    headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r"}
    return Reply(200, headers, body.encode(), is_complete, failure=failure)


def answer(content: str | None, finish: str = "stop", *calls: Json) -> Reply:
    """In one piece, without log-probabilities."""
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    message |= {"tool_calls": list(calls)} if calls else {}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return whole({**COMPLETION, "choices": [choice]})


def malformed(asked: Ask, reply: Reply) -> str:
    verdict = judge(asked, reply)
    assert verdict.outcome is Outcome.MALFORMED, verdict
    return verdict.reason


def test_what_is_right_is_answered() -> None:
    answered = Verdict(Outcome.ANSWERED)
    assert judge(asked(), whole(COMPLETION)) == answered
    assert judge(STREAMED, in_events(": ping\n\n" + streamed(CHUNKS))) == answered


@pytest.mark.parametrize("mutate", [mutate for mutate, _ in COMPLETION_MUTATIONS])
def test_a_mutated_completion_is_malformed(mutate: Mutation) -> None:
    mutated = copy.deepcopy(COMPLETION)
    mutate(mutated)
    assert malformed(asked(), whole(mutated))


@pytest.mark.parametrize("mutate", [mutate for mutate, _ in STREAM_MUTATIONS])
def test_a_mutated_stream_is_malformed(mutate: Mutation) -> None:
    mutated = copy.deepcopy(CHUNKS)
    mutate(mutated)
    assert malformed(STREAMED, in_events(streamed(mutated)))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (streamed(CHUNKS, end=""), "a clean end without [DONE]"),
        (streamed(CHUNKS, end="data: [DONE]\n"), "in the middle of an event"),
        (streamed(CHUNKS, end="event: end\ndata: [DONE]\n\n"), "not one line of data"),
        (streamed(CHUNKS[:1], end="data: {\n\n"), "not JSON"),
        (streamed([{"error": {"message": "m"}}], end=""), "without [DONE]"),
    ],
)
def test_a_stream_that_is_framed_or_ends_wrongly_is_malformed(body: str, fault: str) -> None:
    assert fault in malformed(STREAMED, in_events(body))


@pytest.mark.parametrize(
    ("fields", "reply", "fault"),
    [
        ({}, answer("hello", "length"), "length, before max_tokens were used"),
        ({}, answer("hello", "content_filter"), "nobody filters"),
        ({"tools": [TOOL | {"function": {"name": "g"}}]}, whole(COMPLETION), "f was not declared"),
        ({"top_logprobs": 2}, whole(COMPLETION), "fewer than were asked for"),
        ({"stop": "ell"}, whole(COMPLETION), "contains the stop string"),
        ({"max_tokens": 6}, whole(COMPLETION), "more tokens than max_tokens"),
        ({"n": 2}, whole(COMPLETION), "choices: "),
        ({"stream": True}, whole(COMPLETION), "answered in one piece"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_malformed(
    fields: Json, reply: Reply, fault: str
) -> None:
    assert fault in malformed(asked(logprobs=fields.pop("logprobs", True), **fields), reply)


@pytest.mark.parametrize("arguments", ["", '{"a":', "[1]", "3", "null"])
def test_arguments_that_nobody_can_read_are_malformed(arguments: str) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    fault = malformed(asked(logprobs=None), answer(None, "tool_calls", call))
    assert "the arguments are no JSON object" in fault


def test_arguments_that_max_tokens_has_cut_are_not_judged() -> None:
    call = {**CALL, "function": {"name": "f", "arguments": '{"a":'}}
    cut = answer(None, "length", call)
    verdict = judge(asked(CALLED, logprobs=None, max_tokens=7), cut)
    assert verdict == Verdict(Outcome.ANSWERED, "", True, '[["", ["f", "{\\"a\\":"]]]')


@pytest.mark.parametrize(
    "reply",
    [
        whole({"error": {**ERROR, "code": ""}}, 500),
        whole({"error": "m"}, 500),
        whole({"detail": "m"}, 500),
        whole({"error": ERROR}, 503),
        whole({"error": ERROR}, 503, **{"retry-after": "0"}),
        whole({"error": ERROR}, 500, **{"content-type": "text/plain"}),
        whole({"error": ERROR}, 500, **{"x-request-id": ""}),
        Reply(500, {"content-type": "application/json", "x-request-id": "r"}, b"oops", True),
    ],
)
def test_a_refusal_that_is_none_is_malformed(reply: Reply) -> None:
    assert malformed(asked(), reply)


def test_refusals_are_told_apart() -> None:
    later = {"retry-after": "2"}
    full = whole({"error": {**ERROR, "code": "overloaded"}}, 503, **later)
    assert judge(asked(), full) == Verdict(Outcome.OVERLOADED, "503: m")
    assert judge(asked(), whole({"error": ERROR}, 503, **later)).outcome is Outcome.FAILED
    broken = in_events(streamed([*CHUNKS[:CONTENT], {"error": ERROR}], end=""), False, "cut off")
    assert judge(STREAMED, broken) == Verdict(Outcome.FAILED, "200: m")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(failure="the connection failed"),
        in_events(streamed(CHUNKS[:CONTENT], end=""), False, "cut off"),
        in_events(streamed(CHUNKS[:CONTENT], end='data: {"id'), False, "cut off"),
        in_events("", False, "not complete within 600 s"),
        replace(whole(COMPLETION), is_complete=False, failure="cut off"),
    ],
)
def test_what_does_not_end_and_does_not_say_so_is_lost(reply: Reply) -> None:
    is_stream = "event-stream" in reply.headers.get("content-type", "")
    verdict = judge(STREAMED if is_stream else asked(), reply)
    assert verdict.outcome is Outcome.LOST
    assert reply.failure in verdict.reason


def test_a_client_that_leaves_has_lost_nothing_but_may_have_seen_a_fault() -> None:
    nothing = Reply(has_left=True)
    some = replace(in_events(streamed(CHUNKS[:CONTENT], end="da"), False), has_left=True)
    bad = replace(in_events(streamed([*CHUNKS[:2], *CHUNKS[:1]], end=""), False), has_left=True)
    early = replace(whole(COMPLETION), has_left=True)
    assert judge(STREAMED, nothing) == judge(STREAMED, some) == Verdict(Outcome.LEFT)
    assert "role: " in malformed(STREAMED, bad)
    assert judge(asked(), early).outcome is Outcome.ANSWERED


@pytest.mark.parametrize(
    ("content", "finish", "fields", "is_copy"),
    [
        ("You said: an apple", "stop", {}, True),
        ("You said: an orange", "stop", {}, False),
        ("You said: an", "stop", {}, False),
        ("You said: an", "length", {"max_tokens": 7}, True),
        ("You said: on", "length", {"max_tokens": 7}, False),
        ("You said: an ", "stop", {"stop": "app"}, True),
        ("You said: an ", "stop", {"stop": ["apple", "zebra", "appl"]}, True),
        ("You said:", "stop", {"stop": [" apple", " an ap"]}, True),
        ("You said: an", "stop", {"stop": "app"}, False),
        ("You said: an apple", "stop", {"stop": "zebra"}, True),
    ],
)
def test_a_copy_is_right_as_far_as_it_may_go(
    content: str, finish: str, fields: Json, is_copy: bool
) -> None:
    question = asked(Expected("You said: an apple"), logprobs=None, **fields)
    assert judge(question, answer(content, finish)).is_copy is is_copy


def test_a_call_is_right_if_name_and_arguments_are() -> None:
    question = asked(CALLED, logprobs=None)
    other = {**CALL, "function": {"name": "f", "arguments": '{"a":2}'}}
    assert judge(question, answer(None, "tool_calls", CALL)).is_copy is True
    assert judge(question, answer(None, "tool_calls", other)).is_copy is False
    assert judge(question, answer("hello")).is_copy is False
    assert judge(asked(logprobs=None), answer("hello")).is_copy is None


def test_a_stream_without_usage_is_right_where_nobody_asked_for_it() -> None:
    bare = [{k: v for k, v in sent.items() if k != "usage"} for sent in CHUNKS[:LAST]]
    question = replace(asked(), body={**STREAMED.body, "stream_options": None})
    assert judge(question, in_events(streamed(bare))).outcome is Outcome.ANSWERED
    cut = [*bare[:FINISH], {**bare[FINISH], "choices": chunk({}, None, "length")["choices"]}]
    assert judge(question, in_events(streamed(cut))).outcome is Outcome.ANSWERED
