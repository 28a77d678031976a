"""An answer as it grows: deltas, then one outcome. What every wire API's encoder is fed with.

Made by `answer_reader`, read by `chat_response`. Must not know token ids, channels or JSON.
"""

from collections.abc import Sequence

from msgspec import Struct

from verger.formats.harmony.events import Finish


class ToolCallDelta(Struct, frozen=True):
    """A piece of the call at `index`; `id` and `name` are set in its first piece only."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


class TopLogprob(Struct, frozen=True):
    """A token that could have stood there."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Struct, frozen=True):
    """A token of the final channel, with the most likely tokens at its place."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob]


class Delta(Struct, frozen=True):
    """What one step added."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing that a client could see."""
        return not (self.reasoning or self.content or self.tool_calls or self.logprobs)


class Usage(Struct, frozen=True):
    """Counts of token ids; `completion_tokens` includes Harmony's own."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: float | None = None
    """What a cloud provider asks for it; None where nothing is asked, or nobody says."""


class Outcome(Struct, frozen=True):
    """The end of an answer."""

    finish: Finish
    usage: Usage


class Served(Struct, frozen=True):
    """Who answered and why, and milliseconds until it was the request's turn."""

    served_by: str
    reason: str
    queue_ms: int


Piece = tuple[int, Delta | Outcome]
"""The choice that it belongs to, and what a step added to it or how it ended."""


def total_usage(usages: Sequence[Usage]) -> Usage:
    """What the choices of one request used together: prompt and cost, which are common, once."""
    return Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=max(usage.cached_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        cost_usd=usages[0].cost_usd,
    )
