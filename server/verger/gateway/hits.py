"""How much of a prompt the engine has already: asked for when a request comes, told between steps.

Owned by `engine_client.py`. Nobody waits long for the answer: without one a request counts as if
nothing were cached, and an answer that comes late still counts for what is decided later. Must not
know what is decided.
"""

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from verger.messages import Found, LookUp, Submit

LOOK_UP_WAIT_S = 0.04
"""With what a forecast takes, a few milliseconds, a decision takes no more than 50."""
MAX_LOOK_UPS = 256
"""Unanswered ones; a request beyond them is not looked up."""


@dataclass(slots=True, eq=False)
class Hits:
    """What is cached of one prompt; 0 until the engine has told."""

    memory_tokens: int = 0
    disk_tokens: int = 0
    """With what would be read back from disk first."""
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_told(self) -> bool:
        """Whether the engine has answered."""
        return self._told.is_set()

    async def wait(self, timeout_s: float = LOOK_UP_WAIT_S) -> None:
        """Until it is told, but not for longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._told.wait()

    def tell(self, found: Found) -> None:
        """The engine's answer."""
        self.memory_tokens, self.disk_tokens = found.memory_tokens, found.disk_tokens
        self._told.set()


class LookUps:
    """Questions that are not answered yet."""

    def __init__(self, send: Callable[[LookUp], None]) -> None:
        self._send = send
        self._ids = itertools.count(1)
        self._unanswered: dict[int, Hits] = {}

    def ask(self, submit: Submit) -> Hits:
        """Ask the engine, unless it owes too many answers."""
        hits = Hits()
        if len(self._unanswered) < MAX_LOOK_UPS:
            lookup_id = next(self._ids)
            self._unanswered[lookup_id] = hits
            self._send(LookUp(lookup_id, submit.prompt, submit.cache_salt))
        return hits

    def tell(self, found: Found) -> None:
        """An answer has come."""
        hits = self._unanswered.pop(found.lookup_id, None)
        if hits is not None:
            hits.tell(found)

    def forget(self) -> None:
        """The engine is gone, and its cache with it: nothing is cached, and nobody need wait."""
        unanswered, self._unanswered = self._unanswered, {}
        for lookup_id, hits in unanswered.items():
            hits.tell(Found(lookup_id, 0, 0))
