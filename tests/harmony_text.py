"""Harmony as text, for tests: special tokens written out, and an answer's events put together."""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.fakes import byte_tokenizer
from verger.formats.harmony import (
    ContentDelta,
    Event,
    Finish,
    HarmonyParser,
    ReasoningDelta,
    Repair,
    ToolCallDelta,
    ToolCallStart,
)
from verger.formats.specials import Special
from verger.formats.vocabulary import Vocabulary
from verger.messages import FinishReason

_SPECIAL = re.compile("(" + "|".join(re.escape(special.value) for special in Special) + ")")


@functools.cache
def byte_vocabulary() -> Vocabulary:
    """One token a byte: every character of more than one byte is split across tokens."""
    return Vocabulary.from_file_bytes(byte_tokenizer().to_str().encode())


def harmony_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    """The ids of a text in which "<|start|>" and its like stand for the special tokens."""
    ids: list[int] = []
    for part in _SPECIAL.split(text):
        is_special = _SPECIAL.fullmatch(part)
        ids += [vocabulary.special(part)] if is_special else vocabulary.encode(part)
    return ids


def harmony_text(ids: Iterable[int], vocabulary: Vocabulary) -> str:
    """The inverse of `harmony_ids`."""
    names = {vocabulary.special(special.value): special.value for special in Special}
    pieces = (names[id].encode() if id in names else vocabulary.token_bytes(id) for id in ids)
    return b"".join(pieces).decode()


@dataclass
class Answer:
    """What a client would see in the end."""

    reasoning: str = ""
    content: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: Finish = Finish.STOP
    reasoning_tokens: int = 0
    repairs: Counter[Repair] = field(default_factory=Counter)

    def add(self, event: Event) -> None:
        match event:
            case ReasoningDelta(text):
                self.reasoning += text
            case ContentDelta(text):
                self.content += text
            case ToolCallStart(index, name):
                assert index == len(self.calls)
                self.calls.append([name, ""])
            case ToolCallDelta(index, arguments):
                self.calls[index][1] += arguments


def parse_ids(
    ids: Sequence[int],
    vocabulary: Vocabulary,
    tools: Sequence[str] = (),
    reason: FinishReason = FinishReason.STOP,
    ids_per_feed: int = 1,
) -> Answer:
    """Feed a parser and add up its events."""
    parser = HarmonyParser(vocabulary, tools)
    answer = Answer()
    for start in range(0, len(ids), ids_per_feed):
        for event in parser.feed(ids[start : start + ids_per_feed]):
            answer.add(event)
    outcome = parser.close(reason)
    for event in outcome.events:
        answer.add(event)
    answer.finish = outcome.finish
    answer.reasoning_tokens = outcome.reasoning_tokens
    answer.repairs = outcome.repairs
    return answer


def parse_text(
    text: str, tools: Sequence[str] = (), reason: FinishReason = FinishReason.STOP
) -> Answer:
    """As `parse_ids`, one byte at a time; checks that the size of the pieces does not matter."""
    vocabulary = byte_vocabulary()
    ids = harmony_ids(text, vocabulary)
    answer = parse_ids(ids, vocabulary, tools, reason)
    assert answer == parse_ids(ids, vocabulary, tools, reason, ids_per_feed=len(ids))
    return answer
