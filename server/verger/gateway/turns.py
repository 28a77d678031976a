"""One answer of the engine: rendered conversation → submission → deltas → outcome.

Opened by every endpoint that generates; wire APIs differ only in what they make of the deltas.
Must not know JSON or SSE. Leaving `open_turn` before the end cancels what still runs.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from verger.api.answer import Outcome, Piece, Usage, total_usage
from verger.api.answer_reader import AnswerReader, Ending
from verger.api.turn_request import TurnRequest
from verger.errors import ContextLengthExceeded, EngineUnavailable
from verger.formats.harmony import Prompt
from verger.formats.harmony.events import Repair
from verger.formats.specials import STOPS
from verger.gateway.edge import RequestRecord
from verger.gateway.generation import Generation
from verger.gateway.interleave import interleave
from verger.gateway.service import Service
from verger.messages import Finished, FinishReason, Progress, RowTokens, Submit


@dataclass(slots=True)
class Turn:
    """Generations that run, one per choice, and the readers of what they sample."""

    prompt_tokens: int
    generations: tuple[Generation, ...]
    readers: tuple[AnswerReader, ...]
    record: RequestRecord
    monotonic_s: Callable[[], float]
    cancel: Callable[[int], None]
    """Ends a generation, by its request id, if it still runs."""
    _outcomes: list[Outcome] = field(default_factory=list)
    _repairs: Counter[Repair] = field(default_factory=Counter)

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return len(self.generations)

    def pieces(self) -> AsyncGenerator[Piece]:
        """Per choice at most one delta per step, none of them empty, then the outcome.

        Raises EngineUnavailable, Overloaded or ContextLengthExceeded if a generation fails.
        """
        choices = [self._choice(index) for index in range(self.choices)]
        return choices[0] if len(choices) == 1 else interleave(choices)

    async def _choice(self, index: int) -> AsyncGenerator[Piece]:
        generation, reader = self.generations[index], self.readers[index]
        async for event in generation:
            match event:
                case RowTokens():
                    delta = reader.feed(event.ids, event.logprobs)
                    if reader.is_over:
                        self.cancel(generation.request_id)
                    if not delta.is_empty:
                        self._note_first_delta()
                        yield index, delta
                    if reader.is_over:
                        yield index, self._outcome(reader, reader.close(FinishReason.STOP), 0)
                        return
                case Finished(reason=FinishReason.CANCELLED):
                    raise EngineUnavailable("The engine gave the request up. Send it again.")
                case Finished():
                    ending = reader.close(event.reason)
                    if not ending.delta.is_empty:
                        self._note_first_delta()
                        yield index, ending.delta
                    yield index, self._outcome(reader, ending, event.cached_tokens)
                case Progress():
                    pass

    def _note_first_delta(self) -> None:
        if self.record.first_delta_s is None:
            self.record.first_delta_s = self.monotonic_s()

    def _outcome(self, reader: AnswerReader, ending: Ending, cached_tokens: int) -> Outcome:
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=reader.completion_tokens,
            cached_tokens=cached_tokens,
            reasoning_tokens=ending.reasoning_tokens,
        )
        outcome = Outcome(ending.finish, usage)
        self._outcomes.append(outcome)
        self._repairs += ending.repairs
        if len(self._outcomes) == self.choices:
            self._note_end()
        return outcome

    def _note_end(self) -> None:
        """Only now is the record's `finish` set: before, a client that leaves has left early."""
        usage = total_usage([outcome.usage for outcome in self._outcomes])
        self.record.completion_tokens = usage.completion_tokens
        self.record.cached_tokens = usage.cached_tokens
        self.record.finish = ",".join(outcome.finish.value for outcome in self._outcomes)
        self.record.repairs = ",".join(repair.value for repair in self._repairs) or None


@asynccontextmanager
async def open_turn(
    service: Service, request: TurnRequest, prompt: Prompt, record: RequestRecord
) -> AsyncIterator[Turn]:
    """Submit the prompt; raises ContextLengthExceeded, EngineUnavailable or Overloaded."""
    submit = _submission(service, request, prompt)
    record.prompt_tokens = len(prompt.ids)
    async with service.engine.generate_choices(submit, request.choices) as generations:
        yield Turn(
            prompt_tokens=len(prompt.ids),
            generations=generations,
            readers=tuple(_reader(service, request) for _ in generations),
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


def _submission(service: Service, request: TurnRequest, prompt: Prompt) -> Submit:
    prompt_tokens, context_tokens = len(prompt.ids), service.context_tokens
    room_tokens = context_tokens - prompt_tokens
    if room_tokens < 1:
        raise ContextLengthExceeded(context_tokens, prompt_tokens)
    return Submit(
        request_id=0,
        prompt=prompt.ids,
        max_tokens=min(request.max_tokens or room_tokens, room_tokens),
        stop_ids=[service.vocabulary.special(stop.value) for stop in STOPS],
        sampling=request.sampling,
        logprobs=request.logprobs,
        boundaries=prompt.boundaries,
    )
