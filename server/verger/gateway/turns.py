"""One answer of the engine: rendered conversation → submission → deltas → outcome.

Opened by every endpoint that generates; wire APIs differ only in what they make of the deltas.
Must not know JSON or SSE. Leaving `open_turn` before the end cancels what still runs.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

from verger.api.answer import Delta, Outcome, Piece, Usage, total_usage
from verger.api.answer_reader import AnswerReader, Ending
from verger.api.turn_request import TurnRequest
from verger.errors import AnswerTooLong, ContextLengthExceeded, EngineUnavailable
from verger.formats.harmony import Prompt
from verger.formats.harmony.events import Finish, Repair
from verger.formats.specials import STOPS, Special
from verger.gateway.admission import Cloud, Ticket, nowhere
from verger.gateway.edge import RequestRecord
from verger.gateway.generation import Generation
from verger.gateway.interleave import interleave
from verger.gateway.ledger_store import LOCAL
from verger.gateway.principal import Principal, Priority
from verger.gateway.routing import Reason
from verger.gateway.service import Service
from verger.messages import (
    BATCH,
    INTERACTIVE,
    Finished,
    FinishReason,
    Progress,
    RowTokens,
    Submit,
)

MAX_ANSWER_S = 4 * 3600.0
"""From submission to the last token; the context's 131,072 tokens at nine a second."""


@dataclass(slots=True)
class Turn:
    """Generations that run, one per choice, and the readers of what they sample."""

    prompt: Prompt
    generations: tuple[Generation, ...]
    readers: tuple[AnswerReader, ...]
    ticket: Ticket
    """With what it was let in."""
    record: RequestRecord
    monotonic_s: Callable[[], float]
    cancel: Callable[[int], None]
    """Ends a generation, by its request id, if it still runs."""
    has_left: bool = False
    """Whether the request has gone elsewhere, before its first delta."""
    sampled_ids: list[int] = field(default_factory=list)
    """All of the answer, Harmony's own tokens included, where there is only one."""
    _content: list[str] = field(default_factory=list)
    _outcomes: list[Outcome] = field(default_factory=list)
    _repairs: Counter[Repair] = field(default_factory=Counter)

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return len(self.generations)

    @property
    def is_over(self) -> bool:
        """Whether all answers have come to their end."""
        return len(self._outcomes) == self.choices

    def note_served(self) -> None:
        """Record who answers and why, and how long it has waited, or did, until its turn came;
        once it has left, that is for others to say."""
        if self.has_left:
            return
        given_s = self.generations[0].given_s
        waited_s = (self.monotonic_s() if given_s is None else given_s) - self.record.arrived_s
        self.record.served_by = LOCAL
        self.record.reason = self.ticket.route.reason.value
        self.record.queue_ms = max(0, round(waited_s * 1000))

    @property
    def final(self) -> str | None:
        """What the only answer said, if it ended by itself and calls no tool; else None."""
        if self.choices > 1 or [o.finish for o in self._outcomes] != [Finish.STOP]:
            return None
        return "".join(self._content)

    def pieces(self) -> AsyncGenerator[Piece]:
        """Per choice at most one delta per step, none of them empty, then the outcome.

        Raises EngineUnavailable, Overloaded or ContextLengthExceeded if a generation fails, and
        AnswerTooLong after MAX_ANSWER_S.
        """
        choices = [self._choice(index) for index in range(self.choices)]
        return choices[0] if len(choices) == 1 else interleave(choices)

    def expire(self) -> None:
        """There was time enough: whoever waits for the rest gets an error."""
        error = AnswerTooLong(
            f"The answer was not finished within {MAX_ANSWER_S / 3600:g} hours. Ask for less of it "
            "at a time, or limit it with max_tokens."
        )
        for generation in self.generations:
            generation.fail(error)

    async def _choice(self, index: int) -> AsyncGenerator[Piece]:
        generation, reader = self.generations[index], self.readers[index]
        async for event in generation:
            match event:
                case RowTokens():
                    delta = reader.feed(event.ids, event.logprobs)
                    if reader.is_over:
                        self.cancel(generation.request_id)
                    self._note(event.ids, delta)
                    if not delta.is_empty:
                        yield index, delta
                    if reader.is_over:
                        yield index, self._outcome(index, reader.close(FinishReason.STOP))
                        return
                case Finished(reason=FinishReason.CANCELLED):
                    raise EngineUnavailable("The engine gave the request up. Send it again.")
                case Finished():
                    ending = reader.close(event.reason)
                    self._note([], ending.delta)
                    if not ending.delta.is_empty:
                        yield index, ending.delta
                    yield index, self._outcome(index, ending)
                case Progress():
                    pass

    def _note(self, ids: list[int], delta: Delta) -> None:
        if not delta.is_empty and self.record.first_delta_s is None:
            self.record.first_delta_s = self.monotonic_s()
        if self.choices == 1:
            self.sampled_ids += ids
            self._content.append(delta.content)

    def _outcome(self, index: int, ending: Ending) -> Outcome:
        usage = Usage(
            prompt_tokens=len(self.prompt.ids),
            completion_tokens=self.readers[index].completion_tokens,
            cached_tokens=self.generations[index].cached_tokens or 0,
            reasoning_tokens=ending.reasoning_tokens,
        )
        outcome = Outcome(ending.finish, usage)
        self._outcomes.append(outcome)
        self._repairs += ending.repairs
        if self.is_over:
            self._note_end()
        return outcome

    def note_used(self) -> None:
        """Why it was served here; and what an answer that ended early has used: it counts as much
        as one that was read. Once it has left, others have used more."""
        self.note_served()
        if self.record.finish is None and not self.has_left:
            found = [g.cached_tokens for g in self.generations if g.cached_tokens is not None]
            self.record.cached_tokens = max(found, default=None)
            self.record.completion_tokens = sum(r.completion_tokens for r in self.readers)

    def _note_end(self) -> None:
        """Only now is the record's `finish` set: before, a client that leaves has left early."""
        usage = total_usage([outcome.usage for outcome in self._outcomes])
        self.record.completion_tokens = usage.completion_tokens
        self.record.cached_tokens = usage.cached_tokens
        self.record.reasoning_tokens = usage.reasoning_tokens
        self.record.finish = ",".join(outcome.finish.value for outcome in self._outcomes)
        self.record.repairs = ",".join(repair.value for repair in self._repairs) or None


@asynccontextmanager
async def open_turn(
    service: Service,
    principal: Principal,
    request: TurnRequest,
    prompt: Prompt,
    record: RequestRecord,
    cloud: Cloud = nowhere,
    *,
    was_let_in: bool = False,
) -> AsyncIterator[Turn]:
    """Let the request in, wait for its turn and run; raises ContextLengthExceeded,
    EngineUnavailable or Overloaded.

    Where `cloud` would take it, and shall, Spilled instead: from here, or from `pieces` before the
    first of them.
    """
    if not service.settings.has_weights:
        # The stand-in's vocabulary does not say how long a prompt is.
        service.admission.require_engine(principal, cloud)
    try:
        submit = _submission(service, principal, request, prompt)
    except ContextLengthExceeded:
        service.admission.spill_if_may(principal, cloud, Reason.TOO_LONG_FOR_HERE)
        raise
    record.prompt_tokens = len(prompt.ids)
    effort = request.conversation.effort.value
    ticket = await service.admission.admit(
        submit, request.choices, principal, effort, cloud, was_let_in=was_let_in
    )
    turn = None
    try:
        asked = service.engine.generate_choices(submit, request.choices, ticket.origin)
        async with asked as generations:
            record.route = LOCAL
            turn = _turn(service, request, prompt, ticket, generations, record)
            ticket.spill = partial(service.engine.give_up, generations)
            with _limited(turn):
                yield turn
    finally:
        generations = turn.generations if turn else ()
        service.admission.end(ticket, generations, is_whole=turn is not None and turn.is_over)


@contextmanager
def _limited(turn: Turn) -> Iterator[None]:
    """It ends in time, and what it has used is known then."""
    expiry = asyncio.get_running_loop().call_later(MAX_ANSWER_S, turn.expire)
    try:
        yield
    finally:
        expiry.cancel()
        turn.note_used()


def _turn(
    service: Service,
    request: TurnRequest,
    prompt: Prompt,
    ticket: Ticket,
    generations: tuple[Generation, ...],
    record: RequestRecord,
) -> Turn:
    return Turn(
        prompt=prompt,
        generations=generations,
        readers=tuple(_reader(service, request) for _ in generations),
        ticket=ticket,
        record=record,
        monotonic_s=service.monotonic_s,
        cancel=service.engine.cancel,
    )


def _reader(service: Service, request: TurnRequest) -> AnswerReader:
    return AnswerReader(
        service.vocabulary,
        tool_names=[tool.name for tool in request.conversation.tools],
        stop=request.stop,
        new_call_id=lambda: f"call_{service.new_id()}",
    )


def _submission(
    service: Service, principal: Principal, request: TurnRequest, prompt: Prompt
) -> Submit:
    prompt_tokens, context_tokens = len(prompt.ids), service.context_tokens
    room_tokens = context_tokens - prompt_tokens
    if room_tokens < 1:
        model_tokens = service.settings.context_tokens
        raise ContextLengthExceeded(
            context_tokens,
            prompt_tokens,
            model_tokens if model_tokens > context_tokens else None,
        )
    return Submit(
        request_id=0,
        prompt=prompt.ids,
        max_tokens=min(request.max_tokens or room_tokens, room_tokens),
        stop_ids=[service.vocabulary.special(stop.value) for stop in STOPS],
        sampling=request.sampling,
        logprobs=request.logprobs,
        boundaries=prompt.boundaries,
        cache_salt=principal.tenant,
        priority=BATCH if principal.priority is Priority.BATCH else INTERACTIVE,
        kept_stop_ids=[service.vocabulary.special(Special.CALL.value)],
    )
