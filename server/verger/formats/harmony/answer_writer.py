"""Writes the messages of one answer as events: whole characters, numbered calls, checked JSON.

Used by `parse.py`, which opens and closes the messages. Must not know headers or special tokens.
"""

import codecs
from collections import Counter
from collections.abc import Collection
from enum import Enum
from typing import Any

import msgspec
from msgspec import Struct

from verger.formats.harmony.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    Repair,
    ToolCallDelta,
    ToolCallStart,
)

_BETWEEN_MESSAGES = "\n\n"
_new_decoder = codecs.getincrementaldecoder("utf-8")


class Kind(Enum):
    """What a message's text becomes."""

    REASONING = "reasoning"
    PREAMBLE = "preamble"
    FINAL = "final"
    CALL = "call"
    WRAPPED_CALL = "wrapped_call"
    """Held until its end, where its JSON tells which tool it calls."""


class _Wrapped(Struct):
    name: str
    arguments: dict[str, Any] | str


class AnswerWriter:
    """One message is open at a time; `repairs` is shared with the parser."""

    def __init__(self, tool_names: Collection[str], repairs: Counter[Repair]) -> None:
        self.completed_calls = 0
        self.reasoning_tokens = 0
        self._tool_names = frozenset(tool_names)
        self._repairs = repairs
        self._events: list[Event] = []
        self._has_content = False
        self._kind = Kind.FINAL
        self._decoder = _new_decoder("replace")
        self._bytes = bytearray()
        self._positions: list[int] = []
        self._call_index = -1
        self._arguments = ""
        self._needs_separator = False

    @property
    def is_call(self) -> bool:
        """Whether the message that was opened last calls a tool."""
        return self._kind in (Kind.CALL, Kind.WRAPPED_CALL)

    @property
    def has_answer(self) -> bool:
        """Whether anything but reasoning was said: content, or a whole call."""
        return self._has_content or self.completed_calls > 0

    @property
    def has_tools(self) -> bool:
        """Whether any tool is declared."""
        return bool(self._tool_names)

    def find_tool(self, recipient: str) -> str | None:
        """The declared tool that is meant: `functions.f`, or f behind another prefix or none."""
        for name in (recipient.removeprefix("functions."), recipient.rpartition(".")[2]):
            if name in self._tool_names:
                return name
        return None

    def open(self, kind: Kind, tool_name: str = "") -> None:
        """Begin a message; `tool_name` is for CALL."""
        self._kind = kind
        self._decoder.reset()
        self._needs_separator = self._has_content
        self._arguments = ""
        if kind is Kind.CALL:
            self._start_call(tool_name)

    def append(self, token: bytes, position: int) -> None:
        """Add a token's bytes; they are written at the next flush."""
        self._bytes += token
        self._positions.append(position)
        if self._kind is Kind.REASONING:
            self.reasoning_tokens += 1

    def flush(self, is_end: bool = False) -> None:
        """Write the characters that are whole; at the end, a broken one as U+FFFD."""
        if not (self._positions or is_end):
            return
        text = self._decoder.decode(bytes(self._bytes), is_end)
        self._bytes.clear()
        if text:
            self._write(text)
            self._positions.clear()

    def close(self, is_whole: bool) -> None:
        """End the open message; a call that is not whole is left as it is."""
        self.flush(is_end=True)
        self._positions.clear()
        if self._kind is Kind.WRAPPED_CALL:
            self._unwrap()
        if self._kind is Kind.CALL and is_whole:
            self._complete_call()
        self._kind = Kind.FINAL

    def take_events(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def _write(self, text: str) -> None:
        match self._kind:
            case Kind.REASONING:
                self._events.append(ReasoningDelta(text))
            case Kind.CALL:
                self._arguments += text
                self._events.append(ToolCallDelta(self._call_index, text))
            case Kind.WRAPPED_CALL:
                self._arguments += text
            case Kind.PREAMBLE | Kind.FINAL:
                self._write_content(text, is_final=self._kind is Kind.FINAL)

    def _write_content(self, text: str, is_final: bool) -> None:
        if self._needs_separator:
            self._events.append(ContentDelta(_BETWEEN_MESSAGES, is_final=False))
        self._needs_separator = False
        self._has_content = True
        self._events.append(ContentDelta(text, tuple(self._positions), is_final))

    def _start_call(self, tool_name: str) -> None:
        self._call_index += 1
        self._events.append(ToolCallStart(self._call_index, tool_name))

    def _complete_call(self) -> None:
        """A call without arguments becomes {}, for clients parse what they get."""
        self.completed_calls += 1
        if not self._arguments.strip():
            self._repairs[Repair.CALL_WITHOUT_BODY] += 1
            self._events.append(ToolCallDelta(self._call_index, "{}"))
        elif not _is_json_object(self._arguments):
            self._repairs[Repair.INVALID_ARGUMENTS] += 1

    def _unwrap(self) -> None:
        """Turn `{"name": …, "arguments": …}` into the call it describes, else show it."""
        text = self._arguments
        wrapped = _decode_wrapped(text)
        name = self.find_tool(wrapped.name) if wrapped else None
        if wrapped is None or name is None:
            self._repairs[Repair.UNDECLARED_TOOL] += 1
            self.open(Kind.FINAL)
            self._write_content(text, is_final=True)
            return
        self._repairs[Repair.WRAPPED_CALL] += 1
        self.open(Kind.CALL, name)
        arguments = wrapped.arguments
        self._write(arguments if isinstance(arguments, str) else _json(arguments))


def _decode_wrapped(text: str) -> _Wrapped | None:
    try:
        return msgspec.json.decode(text, type=_Wrapped)
    except (msgspec.DecodeError, RecursionError):
        return None


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()
