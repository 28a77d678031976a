"""What is asked in a round: texts of an exact length, as request bodies and as token ids.

Called by `overhead.py`, and for its texts by all of `bench/`. Pure. The ids come from the renderer
that the server uses, so that both sides start from the same tokens. Must not know what is measured.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from verger.formats.conversation import Conversation, Message, Role
from verger.formats.harmony import render
from verger.formats.specials import STOPS, Special
from verger.formats.vocabulary import Vocabulary

WORDS = (
    "a river and the old stone bridge over it, where we met one summer morning before work; "
    "nobody else had come so early, yet two boats were already on their way down to the sea. "
    "My sister wanted to see what they carried: paper, iron, salt, glass, apples or perhaps bread"
).split()
ENDS = (*STOPS, Special.END, Special.START, Special.CONSTRAIN)
"""Without these a model never leaves the message that it has begun."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `instructions` lengthen the prompt without changing what is asked."""

    model: str
    text: str
    max_tokens: int
    instructions: str = ""

    def body(self) -> str:
        """The request's JSON: greedy, streamed, with the usage at its end."""
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in self._messages()],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return msgspec.json.encode(fields).decode()

    def prompt_ids(self, vocabulary: Vocabulary, date: str) -> list[int]:
        """What the server makes of the body on that date (YYYY-MM-DD)."""
        return render(Conversation(self._messages(), date=date), vocabulary).ids

    def _messages(self) -> tuple[Message, ...]:
        question = Message(Role.USER, self.text)
        if not self.instructions:
            return (question,)
        return (Message(Role.DEVELOPER, self.instructions), question)


def text_of(tokens: int, vocabulary: Vocabulary, random: Random) -> str:
    """Random words of exactly so many tokens, where the vocabulary allows it."""
    costs = {f" {word}": len(vocabulary.encode(f" {word}")) for word in WORDS}
    words: list[str] = []
    remaining = tokens
    while fitting := [word for word, cost in costs.items() if cost <= remaining]:
        words.append(random.choice(fitting))
        remaining -= costs[words[-1]]
    return "".join(words)


def joined_text(tokens: int, vocabulary: Vocabulary, random: Random) -> str:
    """Random words that have at most so many tokens together, and hardly fewer.

    A vocabulary may join a space to the word before it, so that words alone cost something else.
    """
    words: list[str] = []
    while (have := _tokens(words, vocabulary)) < tokens:
        words += random.choices(WORDS, k=max(1, (tokens - have) // 2))
    counts = range(len(words) + 1)
    fitting = bisect_right(counts, tokens, key=lambda n: _tokens(words[:n], vocabulary))
    return " ".join(words[: fitting - 1])


def endless(vocabulary: Vocabulary) -> Mapping[str, float]:
    """The logit_bias that forbids a model of this vocabulary to end its message."""
    return {str(vocabulary.special(end.value)): -100.0 for end in ENDS}


def _tokens(words: list[str], vocabulary: Vocabulary) -> int:
    return len(vocabulary.encode(" ".join(words)))
