"""Whose turn it is: the order in which requests reach the engine, and how many may wait.

Owned by `engine_client.py`, which says how many sequences the engine has. Pure; must not know
frames, processes or HTTP. This is the one place that decides the order: the engine shares its steps
fairly among what it was given, and is given few more than it has rows, so that a request that
comes later can still go first. First come, first served, for now.
"""

from collections import OrderedDict

from verger.gateway.generation import Generation

LOOK_AHEAD_ROWS = 2
"""Sequences beyond its rows that the engine holds, to fill a row in the step after it is free."""
MAX_QUEUED = 256
"""Sequences that may wait; a request of n choices counts n."""

Choices = tuple[Generation, ...]
"""The sequences of one request: they share a prompt, wait together and are submitted at once."""


class SubmitQueue:
    """Requests that wait for their turn."""

    def __init__(self, max_queued: int = MAX_QUEUED) -> None:
        self._max_queued = max_queued
        self._waiting: OrderedDict[int, Choices] = OrderedDict()

    @property
    def sequences(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def push(self, choices: Choices) -> bool:
        """Queue a request; False if there is no room for it."""
        if self.sequences + len(choices) > self._max_queued:
            return False
        self._waiting[choices[0].request_id] = choices
        return True

    def pop_next(self, submitted: int, max_rows: int) -> Choices | None:
        """The request whose turn it is, given how many sequences the engine has; None to wait.

        A request of more choices than the engine is ever given goes once the engine has none.
        """
        if not self._waiting:
            return None
        choices = next(iter(self._waiting.values()))
        if submitted and submitted + len(choices) > max_rows + LOOK_AHEAD_ROWS:
            return None
        self.remove(choices)
        return choices

    def remove(self, choices: Choices) -> bool:
        """Take a request out; False if it does not wait."""
        return self._waiting.pop(choices[0].request_id, None) is not None

    def clear(self) -> list[Choices]:
        """Take all of them out."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        return waiting
