"""How long answers are: of each key and reasoning effort, from its last ones.

Fed and read by the admission. Pure; must not know what an answer says.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

MAX_KINDS = 1024
KEPT = 32
"""Answers of a kind."""
QUANTILE = 0.75
UNKNOWN_TOKENS = 400
"""Of an answer before there was any."""
OVERTIME = 0.5
"""An answer that is longer than all that were seen goes on for so much of its length."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Answers that are alike."""

    key_id: str
    model: str
    effort: str


ANY_KEY = "*"


class OutputLengths:
    """The last lengths of each kind; the kind that was used least lately is forgotten first."""

    def __init__(self, max_kinds: int = MAX_KINDS) -> None:
        self._max_kinds = max_kinds
        self._kinds: OrderedDict[Kind, deque[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, kind: Kind, tokens: int) -> None:
        """An answer has ended by itself, or at its limit."""
        for one in (kind, _of_anybody(kind)):
            lengths = self._kinds.pop(one, None) or deque(maxlen=KEPT)
            lengths.append(tokens)
            self._kinds[one] = lengths
        while len(self._kinds) > self._max_kinds:
            self._kinds.popitem(last=False)

    def left(self, kind: Kind, max_tokens: int, sampled_tokens: int = 0) -> int:
        """How many tokens an answer will still have, of which so many are there."""
        limit = max(0, max_tokens - sampled_tokens)
        known = self._kinds.get(kind) or self._kinds.get(_of_anybody(kind)) or (UNKNOWN_TOKENS,)
        longer = sorted(tokens for tokens in known if tokens > sampled_tokens)
        if not longer:
            return min(limit, max(1, int(sampled_tokens * OVERTIME)))
        return min(limit, longer[int(QUANTILE * (len(longer) - 1))] - sampled_tokens)


def _of_anybody(kind: Kind) -> Kind:
    return Kind(ANY_KEY, kind.model, kind.effort)
