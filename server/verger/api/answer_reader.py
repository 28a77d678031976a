"""Sampled ids → deltas: Harmony parsed, stop strings cut out, log-probabilities matched to tokens.

Called by the gateway's turn, once per step. Pure; one reader reads one answer. Must not know any
wire API: it says what was added, not how that is written.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from verger.api.answer import Delta, TokenLogprob, ToolCallDelta, TopLogprob
from verger.formats.harmony import events as harmony
from verger.formats.harmony.parse import HarmonyParser
from verger.formats.specials import STOPS
from verger.formats.stop import StopStrings
from verger.formats.vocabulary import Vocabulary
from verger.messages import FinishReason, Logprob

MIN_LOGPROB = -9999.0
"""JSON has no infinity; OpenAI writes this instead."""


@dataclass(slots=True)
class _Pieces:
    """The delta of one step while it is put together."""

    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def add_arguments(self, index: int, arguments: str) -> None:
        """One piece per call and step: clients merge pieces across chunks, not within one."""
        if self.tool_calls and (piece := self.tool_calls[-1]).index == index:
            self.tool_calls[-1] = replace(piece, arguments=piece.arguments + arguments)
        else:
            self.tool_calls.append(ToolCallDelta(index, arguments))

    def delta(self, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        return Delta(
            "".join(self.reasoning), "".join(self.content), tuple(self.tool_calls), logprobs
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """The last delta, often empty, and what is known once all ids have been read."""

    delta: Delta
    finish: harmony.Finish
    reasoning_tokens: int
    repairs: Counter[harmony.Repair]


class AnswerReader:
    """Feed it until `is_over` or the engine has finished, then close it."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        tool_names: Collection[str],
        stop: Sequence[str],
        new_call_id: Callable[[], str],
    ) -> None:
        self.completion_tokens = 0
        self.is_over = False
        """Nothing more can be shown, though the engine still samples: it should be cancelled."""
        self._vocabulary = vocabulary
        self._parser = HarmonyParser(vocabulary, tool_names)
        self._stop = StopStrings(stop)
        self._is_stepwise = bool(stop)
        """Ids behind a stop string are not counted, however many came in one event."""
        self._stop_ids = frozenset(vocabulary.special(stop.value) for stop in STOPS)
        self._new_call_id = new_call_id
        self._sampled: list[tuple[int, Logprob]] = []
        self._final_characters = 0
        self._shown_characters = 0
        # (start within the final channel's text, entry): shown when the text at its start is.
        self._held_logprobs: deque[tuple[int, TokenLogprob]] = deque()

    def feed(self, ids: Sequence[int], logprobs: Sequence[Logprob]) -> Delta:
        """What was added; `logprobs` is parallel to `ids`, or empty."""
        if logprobs:
            self._sampled.extend(zip(ids, logprobs, strict=True))
        pieces = _Pieces()
        # One at a time where a piece of text must be known to belong to one token.
        batches = [[token_id] for token_id in ids] if self._is_stepwise or logprobs else [ids]
        for batch in batches:
            self.completion_tokens += len(batch)
            self._take(self._parser.feed(batch), pieces)
            is_ended_by_engine = batch[-1] in self._stop_ids
            self.is_over = not is_ended_by_engine and (self._stop.is_found or self._parser.is_done)
            if self._stop.is_found:
                break
        return pieces.delta(self._shown_logprobs())

    def close(self, reason: FinishReason) -> Ending:
        """The last delta, with what was held back, and why the answer ended."""
        outcome = self._parser.close(reason)
        pieces = _Pieces()
        finish = harmony.Finish.STOP
        if not self._stop.is_found:
            finish = outcome.finish
            self._take(outcome.events, pieces)
            pieces.content.append(self._stop.flush())
            self._shown_characters = self._final_characters + 1
        delta = pieces.delta(self._shown_logprobs())
        return Ending(delta, finish, outcome.reasoning_tokens, outcome.repairs)

    def _take(self, events: Sequence[harmony.Event], pieces: _Pieces) -> None:
        for event in events:
            match event:
                case harmony.ReasoningDelta(text=text):
                    pieces.reasoning.append(text)
                case harmony.ContentDelta():
                    pieces.content.append(self._content(event))
                case harmony.ToolCallStart(index=index, name=name):
                    call_id = self._new_call_id()
                    pieces.tool_calls.append(ToolCallDelta(index, id=call_id, name=name))
                case harmony.ToolCallDelta(index=index, arguments=arguments):
                    pieces.add_arguments(index, arguments)

    def _content(self, event: harmony.ContentDelta) -> str:
        if not event.is_final:
            return event.text
        if self._sampled:
            for position in event.positions:
                entry = self._token_logprob(*self._sampled[position])
                self._held_logprobs.append((self._final_characters, entry))
        shown = self._stop.feed(event.text)
        self._final_characters += len(event.text)
        self._shown_characters += len(shown)
        return shown

    def _shown_logprobs(self) -> tuple[TokenLogprob, ...]:
        shown: list[TokenLogprob] = []
        while self._held_logprobs and self._held_logprobs[0][0] < self._shown_characters:
            shown.append(self._held_logprobs.popleft()[1])
        return tuple(shown)

    def _token_logprob(self, token_id: int, sampled: Logprob) -> TokenLogprob:
        spelled = self._vocabulary.token_bytes(token_id)
        return TokenLogprob(
            token=spelled.decode("utf-8", "replace"),
            bytes=list(spelled),
            logprob=max(sampled.logprob, MIN_LOGPROB),
            top_logprobs=[
                self._top_logprob(top_id, logprob)
                for top_id, logprob in zip(sampled.top_ids, sampled.top_logprobs, strict=True)
            ],
        )

    def _top_logprob(self, token_id: int, logprob: float) -> TopLogprob:
        spelled = self._vocabulary.token_bytes(token_id)
        return TopLogprob(
            spelled.decode("utf-8", "replace"), list(spelled), max(logprob, MIN_LOGPROB)
        )
