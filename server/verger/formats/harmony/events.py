"""What the parser tells its caller: deltas as ids arrive, then one outcome.

Read by `api/`. Must not know wire bodies or ids' meaning.
"""

from collections import Counter
from enum import Enum

from msgspec import Struct


class ReasoningDelta(Struct, frozen=True):
    """More of the analysis channel."""

    text: str


class ContentDelta(Struct, frozen=True):
    """More of the answer. `positions` says which of the ids fed so far, counted from 0, wrote it.

    A token whose bytes are only a part of a character is counted with the delta that completes
    the character. `is_final` is false outside the final channel: for what the model says before
    it calls a tool, and for the blank line between two messages.
    """

    text: str
    positions: tuple[int, ...] = ()
    is_final: bool = True


class ToolCallStart(Struct, frozen=True):
    """The model calls a declared tool; `index` counts its calls from 0."""

    index: int
    name: str


class ToolCallDelta(Struct, frozen=True):
    """More of a call's arguments, as the model writes them: valid JSON is not promised."""

    index: int
    arguments: str


Event = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallDelta


class Finish(Enum):
    """Why an answer ended."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    """Never by gpt-oss itself: some cloud providers look at what it says."""


class Repair(Enum):
    """A way in which gpt-oss breaks its format, as a label for counters.

    All were seen in the field; tests/unit/test_harmony_malformed.py has an example of each.
    """

    DUPLICATE_RECIPIENT = "duplicate_recipient"
    MISSING_CONSTRAIN = "missing_constrain"
    REPEATED_CHANNEL = "repeated_channel"
    CALL_ON_ANALYSIS = "call_on_analysis"
    TYPED_FINAL = "typed_final"
    HEADER_JUNK = "header_junk"
    MISSING_START = "missing_start"
    STRAY_TEXT = "stray_text"
    MISSING_END = "missing_end"
    BARE_TEXT = "bare_text"
    BODY_IN_HEADER = "body_in_header"
    CALL_WITHOUT_BODY = "call_without_body"
    TRUNCATED = "truncated"
    WRONG_TERMINATOR = "wrong_terminator"
    INEXACT_TOOL = "inexact_tool"
    UNDECLARED_TOOL = "undeclared_tool"
    WRAPPED_CALL = "wrapped_call"
    NO_FINAL = "no_final"
    FOREIGN_AUTHOR = "foreign_author"
    INVALID_ARGUMENTS = "invalid_arguments"
    RUNAWAY_HEADER = "runaway_header"
    STRAY_SPECIAL = "stray_special"


class Outcome(Struct, frozen=True):
    """The end of an answer; `events` are its last deltas."""

    finish: Finish
    events: list[Event]
    reasoning_tokens: int
    repairs: Counter[Repair]
