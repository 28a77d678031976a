"""What types cannot say of a chat answer: order of chunks, indices, sums, usage, log-probabilities.

Called by `validator`, and by tests that compare a stream with the answer in one piece. Each rule
yields one line per fault. Bodies are decoded JSON whose types have been checked before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

CONSTANT = ("id", "created", "model", "object", "system_fingerprint")
"""What every chunk of a stream repeats."""
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
    for stop in _stops(request):
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
    fits = spelled.startswith if _stops(request) else spelled.__eq__
    if not any(fits(final) for final in _possible_finals(content)):
        yield f"logprobs: the tokens spell {spelled!r}, the content is {content!r}"
    for entry in entries:
        if len(entry["top_logprobs"]) > (request.get("top_logprobs") or 0):
            yield "top_logprobs: more than were asked for"
        for token in (entry, *entry["top_logprobs"]):
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


def _stops(request: Json) -> list[str]:
    stop = request.get("stop") or []
    return [stop] if isinstance(stop, str) else stop


@dataclass(slots=True)
class _Choice:
    """A choice as far as the stream has told it."""

    index: int
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    finish_reason: str | None = None

    def whole(self) -> Json:
        """The choice as an answer in one piece has it."""
        message: Json = {"role": "assistant", "content": "".join(self.content), "refusal": None}
        if self.reasoning:
            message["reasoning"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = message["content"] or None
        return {
            "index": self.index,
            "message": message,
            "logprobs": {"content": self.logprobs, "refusal": None} if self.logprobs else None,
            "finish_reason": self.finish_reason,
        }


class ChunkReader:
    """Takes the chunks of one stream in order; `faults` says what was wrong with them."""

    def __init__(self, request: Json) -> None:
        self.faults: list[str] = []
        self._request = request
        self._asks_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        self._first: Json | None = None
        self._choices: dict[int, _Choice] = {}
        self._usage: Json | None = None

    def feed(self, chunk: Json) -> None:
        """The next chunk."""
        self._first = self._first or chunk
        if any(chunk.get(name) != self._first.get(name) for name in CONSTANT):
            self.faults.append(f"chunk: one of {', '.join(CONSTANT)} has changed")
        if self._usage is not None:
            self.faults.append("chunk: something after the usage")
        self._take_usage(chunk)
        for choice in chunk["choices"]:
            self._take_choice(choice)

    def end(self) -> None:
        """The stream says that it is complete."""
        if self._asks_usage and self._usage is None:
            self.faults.append("usage: asked for and not there")
        if any(choice.finish_reason is None for choice in self._choices.values()):
            self.faults.append("finish_reason: missing")
        else:
            self.faults += answer_faults(self._request, self.whole())

    def whole(self) -> Json:
        """The answer that the chunks add up to, as it would have been sent in one piece."""
        head = self._first or {}
        choices = [self._choices[index].whole() for index in sorted(self._choices)]
        return {**head, "object": "chat.completion", "choices": choices, "usage": self._usage}

    def _take_usage(self, chunk: Json) -> None:
        if ("usage" in chunk) != self._asks_usage:
            self.faults.append("usage: the field is there exactly when it is asked for")
        self._usage = chunk.get("usage")
        if (self._usage is not None) == bool(chunk["choices"]):
            self.faults.append("usage: in a chunk of its own, without choices, or null")

    def _take_choice(self, sent: Json) -> None:
        index, delta = sent["index"], sent["delta"]
        choice = self._choices.get(index)
        if (choice is None) != ("role" in delta):
            self.faults.append("role: in a choice's first chunk and in no other")
        if choice is None:
            choice = self._choices[index] = _Choice(index)
        elif "" in (delta.get("content"), delta.get("reasoning")) or delta.get("tool_calls") == []:
            self.faults.append("delta: an empty piece")
        if choice.finish_reason is not None:
            self.faults.append("choice: something after its finish_reason")
        choice.content.append(delta.get("content") or "")
        choice.reasoning += [delta["reasoning"]] if "reasoning" in delta else []
        choice.logprobs += (sent.get("logprobs") or {}).get("content") or []
        choice.finish_reason = sent["finish_reason"]
        for piece in delta.get("tool_calls", []):
            self._take_piece(choice.calls, piece)

    def _take_piece(self, calls: list[Json], piece: Json) -> None:
        """A call's first piece names it; clients add up what the others say."""
        function = piece.get("function", {})
        if piece["index"] == len(calls):
            if not (piece.get("id") and piece.get("type") and function.get("name")):
                self.faults.append("tool_calls: the first piece has id, type and name")
            named = {"name": function.get("name"), "arguments": function.get("arguments", "")}
            calls.append({"id": piece.get("id"), "type": piece.get("type"), "function": named})
        elif piece["index"] == len(calls) - 1:
            if piece.keys() != {"index", "function"} or function.keys() != {"arguments"}:
                self.faults.append("tool_calls: a later piece has arguments and nothing else")
            calls[-1]["function"]["arguments"] += function.get("arguments", "")
        else:
            self.faults.append("tool_calls: indices count from 0, one call after the other")


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
