"""Judges one reply of a soak as a strict client would: answered, refused, malformed or lost.

Called by `soak.py` for each reply. The rules are those of `chat_rules.py` and `stream_rules.py`,
and what only they know who know the question: how it has to end and what nano has to say. Pure;
must not know sockets.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from verger.bench.chat_rules import Json, answer_faults, stops_of
from verger.bench.chat_types import SHAPES, completion_shape, error_shape
from verger.bench.soak_asks import Ask, Expected
from verger.bench.stream_rules import DONE, assembled, events_of, stream_faults

OVERLOADED_CODE = "overloaded"
MAX_QUOTED = 300
"""Characters of a reply that is described."""


@dataclass(slots=True)
class Reply:
    """What came back; `status` None if nothing did."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""
    is_complete: bool = False
    """The body ended as HTTP has it end."""
    has_left: bool = False
    """The client did, as it was to."""
    failure: str = ""
    """Why it is not complete."""


class Outcome(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    LEFT = "left"
    OVERLOADED = "overloaded"
    FAILED = "failed"
    """With a well-formed error of another kind."""
    MALFORMED = "malformed"
    LOST = "lost"
    """No answer, or one that breaks off without saying so, or too late."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`is_copy` says whether nano's answer is the one that was expected, None where none was;
    `said` is that answer."""

    outcome: Outcome
    reason: str = ""
    is_copy: bool | None = None
    said: str = ""


def judge(asked: Ask, reply: Reply) -> Verdict:
    """What became of a request."""
    if reply.status is None:
        return Verdict(Outcome.LEFT) if reply.has_left else Verdict(Outcome.LOST, reply.failure)
    try:
        found = list(_faults(asked, reply))
    except ValueError as error:
        found = [f"body: not JSON, or not UTF-8: {error}"]
    if found:
        return Verdict(Outcome.MALFORMED, f"{found[0]}; it ends {_end_of(reply)}")
    if refusal := _error_of(reply):
        is_overload = refusal["code"] == OVERLOADED_CODE
        outcome = Outcome.OVERLOADED if is_overload else Outcome.FAILED
        return Verdict(outcome, f"{reply.status}: {refusal['message']}")
    if not reply.is_complete:
        if reply.has_left:
            return Verdict(Outcome.LEFT)
        return Verdict(Outcome.LOST, f"{reply.failure}; it ends {_end_of(reply)}")
    if asked.expected is None:
        return Verdict(Outcome.ANSWERED)
    choices = _answer(asked, reply)["choices"]
    # One that max_tokens or a stop string has cut is right as far as it goes.
    is_copy = all(_says(asked, asked.expected, choice) for choice in choices)
    said = json.dumps([_said(choice["message"]) for choice in choices], ensure_ascii=False)
    return Verdict(Outcome.ANSWERED, "", is_copy, said)


def _faults(asked: Ask, reply: Reply) -> Iterator[str]:
    if not reply.headers.get("x-request-id"):
        yield "x-request-id: missing"
    if _is_stream(reply):
        if found := stream_faults(asked.body, _text(reply), reply.is_complete, SHAPES):
            yield from found
            return
    elif not reply.is_complete:
        return
    elif not reply.headers.get("content-type", "").startswith("application/json"):
        yield f"content-type: {reply.headers.get('content-type')!r} is not JSON"
        return
    elif reply.status != 200:
        yield from _error_faults(reply)
        return
    elif found := _completion_faults(asked.body, json.loads(reply.body)):
        yield from found
        return
    if reply.is_complete:
        yield from _ending_faults(asked.body, _answer(asked, reply))


def _completion_faults(request: Json, body: Any) -> list[str]:
    if request.get("stream"):
        return ["stream: asked for, and answered in one piece"]
    return completion_shape(body) or list(answer_faults(request, body))


def _error_faults(reply: Reply) -> Iterator[str]:
    yield from error_shape(json.loads(reply.body))
    retry_after = reply.headers.get("retry-after", "")
    if reply.status in (429, 503) and not (retry_after.isdecimal() and int(retry_after) > 0):
        yield "retry-after: missing"


def _ending_faults(request: Json, answer: Json) -> Iterator[str]:
    """Why it ended must fit what was asked; a call must be one that somebody can make."""
    finishes = [choice["finish_reason"] for choice in answer["choices"]]
    if "content_filter" in finishes:
        yield "finish_reason: content_filter, and nobody filters here"
    lengthy, used = finishes.count("length"), (answer["usage"] or {}).get("completion_tokens")
    if used is not None and used < lengthy * request["max_tokens"]:
        yield "finish_reason: length, before max_tokens were used"
    declared = {tool["function"]["name"] for tool in request.get("tools", ())}
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            if call["function"]["name"] not in declared:
                yield f"tool_calls: {call['function']['name']} was not declared"
            if choice["finish_reason"] == "tool_calls" and not _is_object(call):
                yield f"tool_calls: the arguments are no JSON object: {call['function']!r}"
        for entry in (choice["logprobs"] or {}).get("content") or ():
            if len(entry["top_logprobs"]) != request["top_logprobs"]:
                yield "top_logprobs: fewer than were asked for"


def _is_object(call: Json) -> bool:
    try:
        return isinstance(json.loads(call["function"]["arguments"]), dict)
    except ValueError:
        return False


def _says(asked: Ask, expected: Expected, choice: Json) -> bool:
    said, text = _said(choice["message"]), expected.text
    is_cut = choice["finish_reason"] == "length"
    if expected.tool:
        if is_cut:
            return all(n == expected.tool and text.startswith(a) for n, a in said[1:])
        return said[1:] == [[expected.tool, text]]
    if is_cut:
        return text.startswith(said[0])
    # The one that is complete first ends it; at the same place, the longest.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops_of(asked.body) if s in text]
    return bool(said[0] == text[: min(ends)[1] if ends else None])


def _said(message: Json) -> list[Any]:
    """The content, then the name and the arguments of each call."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    return [message["content"] or "", *([f["name"], f["arguments"]] for f in functions)]


def _answer(asked: Ask, reply: Reply) -> Json:
    """The whole answer of a valid, complete reply."""
    if _is_stream(reply):
        return assembled(asked.body, _text(reply))
    answer: Json = json.loads(reply.body)
    return answer


def _error_of(reply: Reply) -> Json | None:
    """The error that a valid reply is, or ends with."""
    if not _is_stream(reply):
        body = json.loads(reply.body) if reply.is_complete and reply.status != 200 else {}
        return body.get("error")
    events, _ = events_of(_text(reply), reply.is_complete)
    if not events or events[-1] == DONE:
        return None
    error: Json | None = json.loads(events[-1]).get("error")
    return error


def _is_stream(reply: Reply) -> bool:
    return reply.status == 200 and reply.headers.get("content-type", "").startswith(
        "text/event-stream"
    )


def _text(reply: Reply) -> str:
    """Up to the last event that is whole, where it was broken off."""
    if reply.is_complete:
        return reply.body.decode()
    whole, end, _ = reply.body.rpartition(b"\n\n")
    return (whole + end).decode()


def _end_of(reply: Reply) -> str:
    return repr(reply.body[-MAX_QUOTED:])
