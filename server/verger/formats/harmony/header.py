"""Reads the header of a Harmony message: who speaks to whom, on which channel.

    <|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>
    ╰───────────────────────────────╯╰────────────────────╯╰───────────────╯

A header is a run of segments, each a special token and the text behind it. gpt-oss writes headers
freely, so reading never fails: what is known is taken wherever it stands, the rest is junk.
Called by `parse.py`. Must not know ids, nor which tools exist.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from verger.formats.harmony.events import Repair
from verger.formats.specials import Special


class Channel(Enum):
    """Where a message goes: thoughts, calls and asides, or the answer."""

    ANALYSIS = "analysis"
    COMMENTARY = "commentary"
    FINAL = "final"


@dataclass(slots=True)
class Segment:
    """The ordinary tokens behind `opener`; it is None where the prompt has opened the message.

    `ends[i]` is where the i-th of the tokens, at `first_position + i`, ends in `text`.
    """

    opener: Special | None
    first_position: int
    text: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)

    @property
    def is_leading(self) -> bool:
        """It names the author, or would if the prompt had not."""
        return self.opener in (None, Special.START)

    def append(self, token: bytes) -> None:
        """Add the bytes of the next token."""
        self.text += token
        self.ends.append(len(self.text))

    def tokens_from(self, offset: int) -> Iterator[tuple[bytes, int]]:
        """The tokens that reach beyond an offset into `text`, cut there, and their positions."""
        start = 0
        for number, end in enumerate(self.ends):
            if end > offset:
                yield bytes(self.text[max(start, offset) : end]), self.first_position + number
            start = end


@dataclass(slots=True)
class Header:
    """What was read. `author` is empty for the assistant itself, `recipient` for nobody."""

    author: str = ""
    recipient: str = ""
    channel: Channel | None = None
    content_type: str = ""
    body_offset: int = 0
    """Where the last segment's text stops being header; matters if <|message|> is missing."""
    repairs: list[Repair] = field(default_factory=list)

    @property
    def is_foreign(self) -> bool:
        """The model has begun to speak for the user or for a tool."""
        return bool(self.author) and (
            self.author in _OTHER_AUTHORS
            or self.author.startswith(_TOOL_PREFIXES)
            or self.recipient == "assistant"
        )


_OTHER_AUTHORS = ("user", "system", "developer", "tool", "python")
_TOOL_PREFIXES = ("functions.", "browser.")
_PUNCTUATION = ".,;:!?\"'`"

# What a header may hold; items may be glued together, as in `assistantfinal`.
_ITEM = re.compile(
    rb"""
      to \s* [=:] \s* (?P<recipient> [^\s{]+ )
    | (?P<function> functions\. [^\s{]+ )
    | (?P<assistant> assistant ) (?= $ | \W | analysis | commentary | final | to[=:] )
    | (?P<channel> analysis | commentary | final ) (?= $ | \W | to[=:] )
    | (?P<type> json | code | text ) (?= $ | \W )
    | (?P<mark> [^\w\s{]+ )
    | (?P<word> \S+ )
    """,
    re.VERBOSE,
)


def read_header(segments: Sequence[Segment], is_complete: bool) -> Header:
    """Read all of a header whose <|message|> came; else only up to what must be its body."""
    reader = _Reader(is_complete)
    for segment in segments:
        reader.read(segment)
    return reader.finish()


class _Reader:
    """`_is_first` and `_is_prose` speak of the segment at hand: nothing yet, or a word too many."""

    def __init__(self, is_complete: bool) -> None:
        self._is_complete = is_complete
        self._header = Header()
        self._recipients = 0
        self._channel_segments = 0
        self._has_junk = False
        self._has_bare_type = False
        self._is_first = True
        self._is_prose = False

    def read(self, segment: Segment) -> None:
        self._header.body_offset = 0
        self._channel_segments += segment.opener is Special.CHANNEL
        self._is_first, self._is_prose = True, False
        for item in _ITEM.finditer(segment.text):
            kind = item.lastgroup or ""
            if self._take(kind, item[kind].decode("utf-8", "replace"), segment):
                self._header.body_offset = item.end()
            else:
                self._has_junk = True
                self._is_prose |= kind != "mark"
            self._is_first &= kind == "mark"
            if self._is_prose and not self._is_complete:
                return

    def finish(self) -> Header:
        header = self._header
        found = {
            Repair.HEADER_JUNK: self._has_junk and self._is_complete,
            Repair.DUPLICATE_RECIPIENT: self._recipients > 1,
            Repair.REPEATED_CHANNEL: self._channel_segments > 1,
            Repair.MISSING_CONSTRAIN: self._has_bare_type and header.recipient != "",
            Repair.TYPED_FINAL: header.channel is Channel.FINAL and header.content_type != "",
        }
        header.repairs = [repair for repair, is_found in found.items() if is_found]
        return header

    def _take(self, kind: str, text: str, segment: Segment) -> bool:
        """Whether the item belongs to a header at this place; behind prose only recipients do."""
        match kind:
            case "word" | "function" if self._is_first and segment.opener is Special.START:
                self._header.author = text.strip(_PUNCTUATION)
                return False
            case "recipient" | "function":
                self._header.recipient = text.strip(_PUNCTUATION)
                self._recipients += 1
                return True
            case "assistant":
                return self._is_first and segment.is_leading
            case "channel" if not self._is_prose and (self._is_complete or not segment.is_leading):
                self._header.channel = Channel(text)
                return True
            case "type" | "word" if not self._is_prose and not segment.is_leading:
                return self._take_type(kind, text, is_marked=segment.opener is Special.CONSTRAIN)
            case _:
                return False

    def _take_type(self, kind: str, text: str, is_marked: bool) -> bool:
        """Behind <|constrain|> any word is a type, elsewhere the known ones."""
        if kind == "word" and (not is_marked or self._header.content_type or "{" in text):
            return False
        self._header.content_type = text
        self._has_bare_type |= not is_marked
        return True
