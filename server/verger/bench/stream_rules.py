"""What a stream of chat chunks must be: framing, order of chunks, and what they add up to.

Called by `soak_check.py` and the tests' validator, each with its own types (`Shapes`). A stream
that was broken off is judged as far as it got. Pure; must not know who sent or received it.
Shapes: OpenAI's API reference, "… chunk object"; server-sent events: WHATWG HTML.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from verger.bench.chat_rules import Json, answer_faults

CONSTANT = ("id", "created", "model", "object", "system_fingerprint")
"""What every chunk of a stream repeats."""
DONE = "[DONE]"

Shape = Callable[[Any], list[str]]
"""What is wrong with the types of a decoded body."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """The types of what a stream holds."""

    chunk: Shape
    error: Shape


def stream_faults(request: Json, body: str, is_complete: bool, shapes: Shapes) -> list[str]:
    """An answer in events; raises ValueError where one is not JSON."""
    events, found = events_of(body, is_complete)
    if found:
        return found
    if not request.get("stream"):
        found.append("stream: not asked for")
    if is_complete and DONE not in events:
        found.append("stream: a clean end without [DONE]")
    reader = ChunkReader(request)
    for position, event in enumerate(events):
        is_last = position == len(events) - 1
        if event == DONE:
            if not is_last:
                found.append("stream: something after [DONE]")
            reader.end()
        elif "error" in (sent := json.loads(event)):
            found += shapes.error(sent)
            if not is_last:
                found.append("stream: something after an error")
        elif faults_of_chunk := shapes.chunk(sent):
            # What is not typed right cannot be read any further.
            return found + faults_of_chunk + reader.faults
        else:
            reader.feed(sent)
    return found + reader.faults


def assembled(request: Json, body: str) -> Json:
    """The answer that a valid, complete stream adds up to."""
    reader = ChunkReader(request)
    events, _ = events_of(body, is_complete=True)
    for event in events[:-1]:
        reader.feed(json.loads(event))
    return reader.whole()


def events_of(body: str, is_complete: bool) -> tuple[list[str], list[str]]:
    """The data of each event, and what is wrong with the framing; comments are skipped."""
    *frames, rest = body.split("\n\n")
    found = ["stream: ends in the middle of an event"] if rest and is_complete else []
    frames = [frame for frame in frames if not frame.startswith(":")]
    for frame in frames:
        if not frame.startswith("data: ") or "\n" in frame:
            found.append(f"stream: {frame!r} is not one line of data")
    return [frame.removeprefix("data: ") for frame in frames], found


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
