"""What types cannot say of a chat answer: indices, sums, usage, stop strings, log-probabilities.

Called by `soak_check.py`, `stream_rules.py` and the tests' validator. Each rule yields one line per
fault. Bodies are decoded JSON whose types have been checked before: pure.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Json = dict[str, Any]

MIN_LOGPROB, MAX_LOGPROB = -9999.0, 0.0


def answer_faults(request: Json, answer: Json) -> Iterator[str]:
    """A whole answer, sent in one piece or put together from a stream, with its usage."""
    choices = answer["choices"]
    if [choice["index"] for choice in choices] != list(range(request.get("n") or 1)):
        yield "choices: not the indices from 0 to n - 1"
    for choice in choices:
        yield from _choice_faults(request, choice)
    if answer.get("usage") is not None:
        yield from _usage_faults(request, answer["usage"], len(choices))


def _choice_faults(request: Json, choice: Json) -> Iterator[str]:
    message = choice["message"]
    calls = message.get("tool_calls", [])
    if choice["finish_reason"] == "tool_calls" and not calls:
        yield "finish_reason: tool_calls without a call"
    if choice["finish_reason"] == "stop" and calls:
        yield "finish_reason: stop with a call"
    if message["content"] is None and not calls:
        yield "content: null without a call"
    ids = [call["id"] for call in calls]
    if len(set(ids)) < len(ids) or not all(ids):
        yield "tool_calls: empty or repeated id"
    if calls and not request.get("tools"):
        yield "tool_calls: no tools were declared"
    for stop in stops_of(request):
        if all(stop in final for final in _possible_finals(message["content"] or "")):
            yield f"content: contains the stop string {stop!r}"
    yield from _logprob_faults(request, choice)


def _logprob_faults(request: Json, choice: Json) -> Iterator[str]:
    content = choice["message"]["content"] or ""
    if choice["logprobs"] is None:
        if request.get("logprobs") and content and choice["finish_reason"] == "stop":
            yield "logprobs: asked for and not there"
        return
    if not request.get("logprobs"):
        yield "logprobs: there though nobody asked"
    entries = choice["logprobs"]["content"]
    spelled = b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace")
    # A stop string may begin in the middle of a token, whose entry is shown whole.
    fits = spelled.startswith if stops_of(request) else spelled.__eq__
    if not any(fits(final) for final in _possible_finals(content)):
        yield f"logprobs: the tokens spell {spelled!r}, the content is {content!r}"
    for entry in entries:
        yield from _entry_faults(request, entry)


def _entry_faults(request: Json, entry: Json) -> Iterator[str]:
    """One token with its alternatives."""
    alternatives = entry["top_logprobs"]
    if len(alternatives) > (request.get("top_logprobs") or 0):
        yield "top_logprobs: more than were asked for"
    if any(one["logprob"] < other["logprob"] for one, other in pairwise(alternatives)):
        yield "top_logprobs: not the most likely first"
    for token in (entry, *alternatives):
        if not MIN_LOGPROB <= token["logprob"] <= MAX_LOGPROB:
            yield f"logprob: {token['logprob']} is no log-probability"
        if token["token"] != bytes(token["bytes"]).decode("utf-8", "replace"):
            yield f"token: {token['token']!r} is not what its bytes spell"


def _possible_finals(content: str) -> Iterator[str]:
    """Only the final message has log-probabilities; what was said before it is a paragraph."""
    yield content
    paragraphs = content.split("\n\n")
    for first in range(1, len(paragraphs)):
        yield "\n\n".join(paragraphs[first:])


def _usage_faults(request: Json, usage: Json, choices: int) -> Iterator[str]:
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    if usage["total_tokens"] != prompt + completion:
        yield "usage: the total is not the sum"
    if not 0 <= (usage["prompt_tokens_details"]["cached_tokens"] or 0) <= prompt:
        yield "usage: more tokens cached than sent"
    if not 0 <= (usage["completion_tokens_details"]["reasoning_tokens"] or 0) <= completion:
        yield "usage: more tokens of reasoning than sampled"
    if usage["queue_ms"] < 0 or not (usage["served_by"] and usage["reason"]):
        yield "usage: does not say who answered, and why"
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit is not None and completion > limit * choices:
        yield "usage: more tokens than max_tokens"


def stops_of(request: Json) -> list[str]:
    stop = request.get("stop") or []
    return [stop] if isinstance(stop, str) else stop
