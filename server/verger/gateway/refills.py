"""After a final: the history is computed again in the background, as the next request brings it.

The prompt of a later turn leaves out the reasoning of this one, so that what was cached while it
was generated ends where that reasoning began. Told of every answer by the endpoints; owns the one
task that renders and submits, so that no answer ends later for it. Nobody waits for a refill: when
there are too many the oldest is dropped; without a ready engine, or a cache, there are none.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from verger.errors import ReplyError
from verger.formats.conversation import Conversation, Message, Role
from verger.formats.harmony import Prompt, render_history
from verger.gateway.principal import Principal
from verger.gateway.service import Service
from verger.gateway.turns import Turn
from verger.log import key_values
from verger.messages import BACKGROUND, Finished, FinishReason, Submit

logger = logging.getLogger("verger.gateway")

MIN_REFILL_TOKENS = 32
"""Fewer are computed faster than they are asked for."""
MAX_REFILLS = 16
"""With the one that the engine has: it gets one at a time."""


@dataclass(frozen=True, slots=True)
class _Refill:
    cause_id: str
    """The request that caused it, as the log knows it."""
    history: Conversation
    cached_ids: list[int]
    """What the engine has computed for the answer, prompt and all."""
    principal: Principal
    """Who is charged for it."""


class Refills:
    """One per process; belongs to the event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._waiting: deque[_Refill] = deque(maxlen=MAX_REFILLS - 1)
        self._task: asyncio.Task[None] | None = None

    def want(self, cause_id: str, conversation: Conversation, turn: Turn) -> None:
        """An answer has ended; if it is final, refill what the next turn will begin with."""
        if turn.final is None or not self._service.settings.has_prefix_cache:
            return
        answer = Message(Role.ASSISTANT, turn.final)
        history = replace(conversation, messages=(*conversation.messages, answer))
        cached_ids = turn.prompt.ids + turn.sampled_ids
        self._waiting.append(_Refill(cause_id, history, cached_ids, turn.ticket.origin.principal))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="refills")
            self._task.add_done_callback(_end)

    async def close(self) -> None:
        """Give up what waits and what runs."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _work(self) -> None:
        while self._waiting:
            refill = self._waiting.popleft()
            # In a thread, so that streams flow on: a long history takes milliseconds.
            prompt = await asyncio.to_thread(self._render, refill)
            if prompt is not None:
                await self._compute(refill, prompt)

    def _render(self, refill: _Refill) -> Prompt | None:
        """The history, or None if it is not worth computing."""
        prompt = render_history(refill.history, self._service.vocabulary)
        missing_tokens = len(prompt.ids) - _common_tokens(prompt.ids, refill.cached_ids)
        fits = len(prompt.ids) <= self._service.context_tokens
        return prompt if fits and missing_tokens >= MIN_REFILL_TOKENS else None

    async def _compute(self, refill: _Refill, prompt: Prompt) -> None:
        submit = Submit(
            request_id=0,
            prompt=prompt.ids,
            max_tokens=0,
            stop_ids=[],
            boundaries=prompt.boundaries,
            cache_salt=refill.principal.tenant,
            priority=BACKGROUND,
        )
        try:
            async with self._service.engine.prefill(submit, refill.principal) as generation:
                async for event in generation:
                    if isinstance(event, Finished):
                        _log(refill, event)
        except ReplyError as error:
            logger.info(
                key_values(event="refill_dropped", id=refill.cause_id, reason=error.message)
            )


def _common_tokens(ids: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(ids, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(ids), len(other)))


def _log(refill: _Refill, finished: Finished) -> None:
    if finished.reason is not FinishReason.CANCELLED:
        logger.info(
            key_values(
                event="prefix_refilled",
                id=refill.cause_id,
                prompt_tokens=finished.prompt_tokens,
                cached_tokens=finished.cached_tokens,
            )
        )


def _end(task: asyncio.Task[None]) -> None:
    """A defect here costs nobody an answer, but must not go unseen."""
    if not task.cancelled() and (defect := task.exception()) is not None:
        logger.critical("event=refills_failed", exc_info=defect)
