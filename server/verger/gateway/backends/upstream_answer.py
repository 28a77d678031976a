"""A provider's stream → our pieces: deltas that say something, then one outcome per choice.

Fed by `cloud` with the data of each event. Pure. Must not know HTTP or time. Lenient in what it
takes, strict in what it gives: ids, indices and finish reasons are made right here, and a stream
that has not said how each choice ends is never complete. Shapes: OpenAI's API reference, "The chat
completion chunk object".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from verger.api.answer import Delta, Outcome, Piece, TokenLogprob, ToolCallDelta, TopLogprob, Usage
from verger.formats.harmony.events import Finish
from verger.gateway.backends.failure import Fault, UpstreamFailure, failure_in_band

MAX_ANSWER_CHARACTERS = 8 * 1024 * 1024
MAX_CALLS = 128
MAX_ID_CHARACTERS = 256
DONE = b"[DONE]"

_FINISHES = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "content_filter": Finish.CONTENT_FILTER,
}


class _Function(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    extra_content: dict[str, Any] | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Logprob(_TopLogprob):
    top_logprobs: list[_TopLogprob] | None = None


class _Logprobs(Struct):
    content: list[_Logprob] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Details(Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    cost: float | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class _Progress:
    """One choice, as far as it has come."""

    call_ids: list[str] = field(default_factory=list)
    last_call_index: int | None = None
    """The provider's number for the call that is being written."""
    finish: Finish | None = None


class UpstreamAnswer:
    """One answer. `new_call_id` names calls that come without a name of their own; `on_signature`
    is told what a call was signed with."""

    def __init__(
        self,
        choices: int,
        new_call_id: Callable[[], str],
        on_signature: Callable[[str, str], None],
    ) -> None:
        self._choices = [_Progress() for _ in range(choices)]
        self._new_call_id = new_call_id
        self._on_signature = on_signature
        self._reported: _Usage | None = None
        self._texts: list[str] = []
        self._characters = 0
        self._reasoning: list[str] = []
        self.is_done = False
        """The provider has said that nothing more comes."""

    @property
    def has_finished(self) -> bool:
        """Every choice has said how it ends; only usage may be missing."""
        return all(choice.finish is not None for choice in self._choices)

    @property
    def has_usage(self) -> bool:
        """Whether the provider has said what was used."""
        reported = self._reported
        return reported is not None and bool(reported.prompt_tokens or reported.completion_tokens)

    @property
    def cost_usd(self) -> float | None:
        """The cost that stood in the usage."""
        cost = self._reported.cost if self._reported else None
        return cost if cost is not None and cost >= 0 else None

    def feed(self, data: bytes) -> list[Piece]:
        """Deltas, none of them empty. Raises UpstreamFailure for what is no chunk, or an error."""
        if data.strip() == DONE:
            self.is_done = True
            return []
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamFailure(Fault.BROKEN, "sent a chunk that cannot be read") from None
        if chunk.error:
            raise failure_in_band(chunk.error)
        if chunk.usage is not None:
            # Some send it with every chunk, growing; the last one counts.
            self._reported = chunk.usage
        pieces: list[Piece] = []
        for choice in chunk.choices or ():
            delta = self._take(choice)
            if not delta.is_empty:
                pieces.append((choice.index, delta))
        return pieces

    def outcomes(self, usage: Usage) -> list[Piece]:
        """How each choice ended; the first carries the usage of all."""
        none = Usage(usage.prompt_tokens, 0, 0, 0)
        finishes = [choice.finish for choice in self._choices]
        assert all(finish is not None for finish in finishes)
        return [
            (index, Outcome(finish, none if index else usage))
            for index, finish in enumerate(finishes)
            if finish is not None
        ]

    def reported_usage(self) -> Usage:
        """What the provider says, made consistent where it is not."""
        reported = self._reported
        assert reported is not None
        prompt_tokens = max(reported.prompt_tokens or 0, 0)
        completion_tokens = max(reported.completion_tokens or 0, 0)
        prompt, completion = reported.prompt_tokens_details, reported.completion_tokens_details
        cached_tokens = prompt.cached_tokens if prompt else 0
        reasoning_tokens = completion.reasoning_tokens if completion else 0
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=min(max(cached_tokens or 0, 0), prompt_tokens),
            reasoning_tokens=min(max(reasoning_tokens or 0, 0), completion_tokens),
            cost_usd=self.cost_usd,
        )

    def counted_usage(self, prompt_tokens: int, count: Callable[[str], int]) -> Usage:
        """What it must have been, by our own count of what came; never too little by much.

        What was reported of an answer that broke off may be behind what came: the larger counts,
        and a cost does not.
        """
        reported = self._reported or _Usage()
        reasoning_tokens = count("".join(self._reasoning))
        completion_tokens = reasoning_tokens + count("".join(self._texts))
        return Usage(
            prompt_tokens=max(prompt_tokens, reported.prompt_tokens or 0),
            completion_tokens=max(completion_tokens, reported.completion_tokens or 0),
            cached_tokens=0,
            reasoning_tokens=reasoning_tokens,
            cost_usd=self.cost_usd if self.has_finished else None,
        )

    def _take(self, choice: _Choice) -> Delta:
        if not 0 <= choice.index < len(self._choices):
            raise UpstreamFailure(Fault.BROKEN, "sent a choice that nobody asked for")
        progress = self._choices[choice.index]
        sent = choice.delta or _Delta()
        delta = Delta(
            reasoning=sent.reasoning or sent.reasoning_content or "",
            content=(sent.content or "") + (sent.refusal or ""),
            tool_calls=self._calls(sent.tool_calls or (), progress),
            logprobs=_logprobs(choice.logprobs),
        )
        if progress.finish is not None and not delta.is_empty:
            raise UpstreamFailure(Fault.BROKEN, "went on after it had finished")
        self._count(delta)
        if choice.finish_reason:
            progress.finish = _finish(choice.finish_reason, progress)
        return delta

    def _count(self, delta: Delta) -> None:
        texts = [delta.content, *(call.name + call.arguments for call in delta.tool_calls)]
        self._texts += texts
        self._reasoning.append(delta.reasoning)
        self._characters += len(delta.reasoning) + sum(map(len, texts))
        if self._characters > MAX_ANSWER_CHARACTERS:
            raise UpstreamFailure(Fault.BROKEN, "sent an answer without end")

    def _calls(self, sent: Sequence[_Call], progress: _Progress) -> tuple[ToolCallDelta, ...]:
        deltas = [self._call(call, progress) for call in sent]
        return tuple(delta for delta in deltas if delta is not None)

    def _call(self, call: _Call, progress: _Progress) -> ToolCallDelta | None:
        function = call.function or _Function()
        arguments = _text(function.arguments)
        opening = _begins(call, function, progress)
        if opening:
            self._open(call, function, progress)
        index = len(progress.call_ids) - 1
        call_id = progress.call_ids[index]
        if (signature := _signature(call)) is not None:
            self._on_signature(call_id, signature)
        if opening:
            return ToolCallDelta(index, arguments, call_id, function.name or "")
        return ToolCallDelta(index, arguments) if arguments else None

    def _open(self, call: _Call, function: _Function, progress: _Progress) -> None:
        if not function.name:
            raise UpstreamFailure(Fault.BROKEN, "sent a tool call without a name")
        if len(progress.call_ids) == MAX_CALLS:
            raise UpstreamFailure(Fault.BROKEN, "sent tool calls without end")
        is_usable = call.id and len(call.id) <= MAX_ID_CHARACTERS
        taken = any(call.id in choice.call_ids for choice in self._choices)
        progress.call_ids.append(
            call.id if call.id and is_usable and not taken else self._new_call_id()
        )
        progress.last_call_index = call.index


def _begins(call: _Call, function: _Function, progress: _Progress) -> bool:
    """Whether a piece opens a call or continues the last one.

    By index, as OpenAI counts; without one, by what only a first piece has. Some providers give
    every call the index 0 and tell them apart by their ids.
    """
    if not progress.call_ids:
        return True
    is_named_anew = bool(call.id and function.name and call.id != progress.call_ids[-1])
    if call.index is None:
        return is_named_anew or bool(function.name and not call.id)
    if call.index == progress.last_call_index or progress.last_call_index is None:
        return is_named_anew
    if call.index < progress.last_call_index:
        raise UpstreamFailure(Fault.BROKEN, "mixed the pieces of several tool calls")
    return True


def _finish(reason: str, progress: _Progress) -> Finish:
    """`stop` after a call is what some say for `tool_calls`."""
    if reason == "error":
        raise UpstreamFailure(Fault.FAULTY, "gave up in the middle")
    finish = _FINISHES.get(reason, Finish.STOP)
    if finish is Finish.STOP and progress.call_ids:
        return Finish.TOOL_CALLS
    return Finish.STOP if finish is Finish.TOOL_CALLS and not progress.call_ids else finish


def _text(arguments: str | dict[str, Any] | None) -> str:
    """Some send the object itself."""
    if isinstance(arguments, dict):
        return msgspec.json.encode(arguments).decode()
    return arguments or ""


def _signature(call: _Call) -> str | None:
    google = (call.extra_content or {}).get("google")
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else None


def _logprobs(sent: _Logprobs | None) -> tuple[TokenLogprob, ...]:
    entries = (sent.content if sent else None) or ()
    return tuple(
        TokenLogprob(
            entry.token,
            _bytes(entry),
            entry.logprob,
            [TopLogprob(top.token, _bytes(top), top.logprob) for top in entry.top_logprobs or ()],
        )
        for entry in entries
    )


def _bytes(entry: _TopLogprob) -> list[int]:
    return list(entry.token.encode()) if entry.bytes is None else entry.bytes
