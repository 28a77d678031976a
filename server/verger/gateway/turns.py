"""One answer of the engine: rendered conversation → submission → deltas → outcome.

Opened by every endpoint that generates; wire APIs differ only in what they make of the deltas.
Must not know JSON or SSE. Leaving `open_turn` before the end cancels the generation.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from verger.api.answer import Delta, Outcome, Usage
from verger.api.answer_reader import AnswerReader, Ending
from verger.api.turn_request import TurnRequest
from verger.errors import ContextLengthExceeded, EngineUnavailable
from verger.formats.harmony import Prompt
from verger.formats.specials import STOPS
from verger.gateway.edge import RequestRecord
from verger.gateway.generation import Generation
from verger.gateway.service import Service
from verger.messages import Finished, FinishReason, Progress, RowTokens, Submit


@dataclass(slots=True)
class Turn:
    """A generation that runs, and the reader of what it samples."""

    prompt_tokens: int
    generation: Generation
    reader: AnswerReader
    record: RequestRecord
    monotonic_s: Callable[[], float]
    release: Callable[[], Awaitable[None]]
    """Cancels the generation if it still runs."""

    async def pieces(self) -> AsyncGenerator[Delta | Outcome]:
        """At most one delta per step, none of them empty, then the outcome.

        Raises EngineUnavailable, Overloaded or ContextLengthExceeded if the generation fails.
        """
        async for event in self.generation:
            match event:
                case RowTokens():
                    delta = self.reader.feed(event.ids, event.logprobs)
                    if self.reader.is_over:
                        await self.release()
                    if not delta.is_empty:
                        self._note_first_delta()
                        yield delta
                    if self.reader.is_over:
                        yield self._outcome(self.reader.close(FinishReason.STOP), 0)
                        return
                case Finished(reason=FinishReason.CANCELLED):
                    raise EngineUnavailable("The engine gave the request up. Send it again.")
                case Finished():
                    ending = self.reader.close(event.reason)
                    if not ending.delta.is_empty:
                        self._note_first_delta()
                        yield ending.delta
                    yield self._outcome(ending, event.cached_tokens)
                case Progress():
                    pass

    def _note_first_delta(self) -> None:
        if self.record.first_delta_s is None:
            self.record.first_delta_s = self.monotonic_s()

    def _outcome(self, ending: Ending, cached_tokens: int) -> Outcome:
        self.record.completion_tokens = self.reader.completion_tokens
        self.record.cached_tokens = cached_tokens
        self.record.finish = ending.finish.value
        self.record.repairs = ",".join(repair.value for repair in ending.repairs) or None
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.reader.completion_tokens,
            cached_tokens=cached_tokens,
            reasoning_tokens=ending.reasoning_tokens,
        )
        return Outcome(ending.finish, usage)


@asynccontextmanager
async def open_turn(
    service: Service, request: TurnRequest, prompt: Prompt, record: RequestRecord
) -> AsyncIterator[Turn]:
    """Submit the prompt; raises ContextLengthExceeded, EngineUnavailable or Overloaded."""
    submit = _submission(service, request, prompt)
    record.prompt_tokens = len(prompt.ids)
    async with AsyncExitStack() as stack:
        generation = await stack.enter_async_context(service.engine.generate(submit))
        yield Turn(
            prompt_tokens=len(prompt.ids),
            generation=generation,
            reader=AnswerReader(
                service.vocabulary,
                tool_names=[tool.name for tool in request.conversation.tools],
                stop=request.stop,
                new_call_id=lambda: f"call_{service.new_id()}",
            ),
            record=record,
            monotonic_s=service.monotonic_s,
            release=stack.aclose,
        )


def _submission(service: Service, request: TurnRequest, prompt: Prompt) -> Submit:
    prompt_tokens, context_tokens = len(prompt.ids), service.settings.context_tokens
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
