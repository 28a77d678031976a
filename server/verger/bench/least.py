"""How many prompt tokens a perfect cache would have to compute: counted from ids, pure.

Called by `replay_counts.py` when all is over. A perfect cache computes each position of each
distinct prefix once; what was generated is there already, because decoding computed it. Must not
know servers or times beyond their order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from verger.bench.chat import Answer
from verger.formats.conversation import Conversation, Message
from verger.formats.harmony import render, render_history
from verger.formats.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was answered: `prompt`, and what is known once the answer has ended."""

    sent_s: float
    ended_s: float
    prompt: Sequence[int]
    continued: Sequence[int]
    """The prompt and what was generated, as far as a later prompt can repeat it."""


_Node = dict[int, "_Node"]
"""A position: what followed it."""


@dataclass(slots=True)
class PrefixTree:
    """All sequences seen so far."""

    positions: int = 0
    """All of them, each once."""
    _root: _Node = field(default_factory=dict)

    def add(self, ids: Iterable[int]) -> int:
        """Insert a sequence; how many of its positions were new."""
        node, new = self._root, 0
        for id in ids:
            following = node.get(id)
            if following is None:
                following = node[id] = {}
                new += 1
            node = following
        self.positions += new
        return new


@dataclass(frozen=True, slots=True)
class Least:
    """What a perfect cache computes, and how many positions it then holds."""

    tokens: int
    positions: int


def least_tokens(exchanges: Iterable[Exchange]) -> Least:
    """In the order in which requests were sent and answers ended.

    Even of a prompt that is known in full one token is computed: the first answer comes of it.
    """
    tree, least = PrefixTree(), 0
    events = [(exchange.sent_s, True, exchange) for exchange in exchanges]
    events += [(exchange.ended_s, False, exchange) for _, _, exchange in events]
    for _, is_prompt, exchange in sorted(events, key=lambda event: event[0]):
        if is_prompt:
            least += max(1, tree.add(exchange.prompt))
        else:
            tree.add(exchange.continued)
    return Least(least, tree.positions)


def exchange_of(conversation: Conversation, answer: Answer, vocabulary: Vocabulary) -> Exchange:
    """What a request's conversation and its answer are as ids."""
    prompt = render(conversation, vocabulary).ids
    continued = _continued(conversation, answer.message, prompt, vocabulary)
    return Exchange(answer.sent_s, answer.ended_s, prompt, continued)


def _continued(
    conversation: Conversation, answer: Message, prompt: list[int], vocabulary: Vocabulary
) -> list[int]:
    """A final answer's reasoning is dropped later on, and the answer with it: it stood behind."""
    if answer.reasoning and not answer.tool_calls:
        return prompt
    messages = (*conversation.messages, answer)
    answered = Conversation(messages, conversation.tools, conversation.effort, conversation.date)
    ids = render_history(answered, vocabulary).ids
    # A final answer ends with <|return|>, where history has <|end|>.
    ids = ids if answer.tool_calls else ids[:-1]
    return ids if ids[: len(prompt)] == prompt else prompt
