"""One request's events on their way from the engine's reader to the one task that consumes them.

Made by `engine_client.py`, iterated by the endpoints. Must not know sockets or processes. The
reader must never wait and has microseconds per row, so this is a deque and a future, no queue
object; a consumer that falls behind finds its tokens merged into one event.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from verger.errors import ReplyError
from verger.messages import Finished, Progress, RowTokens, Submit

Event = Progress | RowTokens | Finished


@dataclass(slots=True)
class Generation:
    """An async iterator that ends after Finished or raises what the request failed with."""

    request_id: int
    """The id on the wire, unique in the life of the gateway."""
    submit: Submit
    """What asked for it; the choices of one answer share it."""
    cached_tokens: int | None = None
    """How much of the prompt was cached; None until the engine has given the request a row."""
    prefilled_tokens: int = 0
    """How much of the prompt is there, cached or computed."""
    sampled_tokens: int = 0
    given_s: float | None = None
    """When the engine got it; None while it waits for its turn."""
    first_token_s: float | None = None
    _events: deque[Event] = field(default_factory=deque)
    _error: ReplyError | None = None
    _is_finished: bool = False
    _waiter: asyncio.Future[None] | None = None

    @property
    def queued_events(self) -> int:
        """What the consumer has not taken yet."""
        return len(self._events)

    def put(self, event: Event) -> None:
        """Hand over an event; of several Progress in a row only the last one is kept."""
        match event:
            case Progress():
                if self.cached_tokens is None:
                    self.cached_tokens = event.cached_tokens
                self.prefilled_tokens = event.prefilled_tokens
                if self._events and isinstance(self._events[-1], Progress):
                    self._events.pop()
            case Finished():
                self.cached_tokens = event.cached_tokens
            case RowTokens():
                self.prefilled_tokens = len(self.submit.prompt)
                self.sampled_tokens += len(event.ids)
        self._events.append(event)
        self._wake()

    def fail(self, error: ReplyError) -> None:
        """Let the consumer raise this once it has taken what is queued."""
        self._error = error
        self._wake()

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Event:
        if self._is_finished:
            raise StopAsyncIteration
        while not self._events:
            if self._error is not None:
                raise self._error
            await self._wait()
        event = self._events.popleft()
        if isinstance(event, RowTokens):
            return self._merge(event)
        self._is_finished = isinstance(event, Finished)
        return event

    async def _wait(self) -> None:
        assert self._waiter is None, "a generation has one consumer"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _merge(self, first: RowTokens) -> RowTokens:
        if not self._events or not isinstance(self._events[0], RowTokens):
            return first
        ids, logprobs = list(first.ids), list(first.logprobs)
        while self._events and isinstance(row := self._events[0], RowTokens):
            self._events.popleft()
            ids += row.ids
            logprobs += row.logprobs
        return RowTokens(first.request_id, ids, logprobs)
